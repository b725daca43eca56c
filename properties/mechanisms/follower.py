"""A follower of the schedule with mechanisms: steps, buffers and backwards as they leave them.

Theory of operation ------------------- In the steps and channels in which a mechanism acts, the result of the
reference's program is changed: its bound by what the mechanism rounds (`carrying`, `half`), or its values
(`decoding`, other buffers, another reading of the cotangent), by the same program with other parameters. What
is stored in a buffer is carried on, so that what follows from it in later steps is predicted, too. Where it
cannot be said whether a mechanism acts (a variance that may or may not be computed as zero), the channel is
undecided.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from properties.expectation.expect import Follower
from properties.expectation.group_step import shares, step_input
from properties.expectation.running_buffers import right_momentum, update_buffers, updated
from properties.expectation.schedule_state import Estimate, RankStep, Walk
from properties.mechanisms import half_precision
from properties.mechanisms.backward_revision import OF_BUFFERS, OF_GRADIENTS, BackwardRevision
from properties.mechanisms.carrying import no_errors
from properties.mechanisms.forward_revisions import (
    by_few_threads,
    counted,
    decoded,
    unmerged,
    with_half_mean,
    with_half_statistics,
)
from properties.mechanisms.native_kernels import adds_one_by_one
from properties.mechanisms.revisions import constant, gradients_of, undecided
from properties.mechanisms.step_data import Bools, Floats
from properties.mechanisms.step_run import StepRun, computed
from reference.rounding import FACTS

Sites = Mapping[str, Mapping[tuple[int, int], Bools]]
"""By mechanism, where it may act: the channels, by rank and step."""


class MechanismFollower(Follower):
    """Follows the schedule of one process group with the mechanisms of `sites`."""

    def __init__(self, walk: Walk, sites: Sites) -> None:
        super().__init__(walk)
        self._sites = sites
        self._runs: dict[int, list[StepRun]] = {}
        self._moved: set[int] = set()
        self._rounded: set[int] = set()
        nowhere = np.zeros(walk.case.channels, np.bool_)
        self._infinite, self._nan, self._vague = nowhere, nowhere, nowhere
        self._batch_infinite: dict[int, Bools] = {}

    def step(self, k: int, members: tuple[int, ...], *, training: bool) -> dict[int, RankStep]:
        """Return each member's share of step k, as the mechanisms have it."""
        run = self._revised(k, self._run(k, members, training=training))
        self._runs.setdefault(k, []).append(run)
        return shares(
            self.walk, members, where=run.where, output=run.output, bad=list(run.bad), training=training
        )

    def update(self, k: int, *, again: bool = False) -> None:
        """Update the buffers in training step k, as the mechanisms have it."""
        walk, total = self.walk, self.walk.case.at(k).total_of(self.walk.group)
        if self._at("lost-update", k).any():
            walk.buffers.tracked += 1
            return
        if total == 0:
            if self._at("decayed-buffers", k).any():
                self._decay(k)
            else:
                super().update(k, again=again)
            return
        before = (walk.buffers.mean.value, walk.buffers.var.value)
        uncertain = self._uncertain() | self._batch_uncertain(k)
        update_buffers(walk, k, again=again or k in self._moved)
        if k in self._rounded:
            self._round_buffers(k, before)
        self._overflow(k, uncertain)

    def before_backward(self, k: int) -> None:
        """Change the shares that the backward of step k is read off."""
        case = self.walk.case
        of_buffers = case.steps[k].mode == "eval" and case.tracking
        names = OF_GRADIENTS + (OF_BUFFERS if of_buffers else ())
        if acting := frozenset(name for name in names if self._at(name, k).any()):
            for run in self._runs[k]:
                # What was run at grade B has the depth of the backward, too.
                left = acting - {"sequential-backward"} if self._any_order(k, run.members) else acting
                revision = BackwardRevision(self.walk, k, left, self._infinite & ~self._vague)
                self.walk.steps[k].update(revision.shares(run))

    def _at(self, mechanism: str, k: int) -> Bools:
        """Return the channels in which a mechanism may act in step k of this group, (C,)."""
        found = self._sites.get(mechanism, {}).get((self.walk.group[0], k))
        return np.zeros(self.walk.case.channels, np.bool_) if found is None else found

    def _any_order(self, k: int, members: tuple[int, ...]) -> bool:
        """Return whether the sums of step k are those of grade B, where A is asked for."""
        walk = self.walk
        return bool(
            walk.grade == "A"
            and walk.device == "cpu"
            and self._at("sequential-sums", k).any()
            and any(adds_one_by_one(walk.case.at(k), rank) for rank in members)
        )

    # The forward

    def _run(self, k: int, members: tuple[int, ...], *, training: bool) -> StepRun:
        walk, grade = self.walk, self.walk.grade
        deeper = grade == "A" and self._at("sequential-sums", k).any()
        if self._any_order(k, members):
            walk.grade = "B"
        try:
            where, given, bad = step_input(walk, k, members, training=training)
        finally:
            walk.grade = grade
        if deeper and walk.device != "cpu":
            given = by_few_threads(walk.case.at(k), where, given, members)
        errors = no_errors(where.bucket.channels)
        return StepRun(members, training, where, given, computed(where, given), tuple(bad), errors)

    def _revised(self, k: int, run: StepRun) -> StepRun:
        if not run.training:
            return self._evaluated(k, run)
        infinite = run.padded(np.zeros_like(self._infinite))
        if len(run.members) > 1:
            if (active := self._at("decoded-variance", k) & ~run.poisoned).any():
                run, infinite = decoded(self.walk, run, run.padded(active))
                self._moved.add(k)
            if self._at("rounded-counts", k).any():
                unknown = np.isinf(run.output.var_bound)
                run, merged = counted(self.walk, run)
                infinite = infinite | merged
                run = unmerged(run, unknown & ~infinite)
                self._moved.add(k)
        if self._at("half-statistics", k).any():
            run = with_half_statistics(self.walk.case, run)
            self._moved.add(k)
            self._rounded.add(k)
        if self._at("half-mean", k).any():
            run = with_half_mean(run)
            self._moved.add(k)
        if infinite.any():
            run = replace(run, output=constant(run.data, run.output, infinite))
            self._batch_infinite[k] = infinite[: self.walk.case.channels]
        return run

    def _evaluated(self, k: int, run: StepRun) -> StepRun:
        case = self.walk.case
        if self._at("half-evaluation", k).any():
            moments = run.moments
            scale = half_precision.evaluation_error(run.data, moments, case.dtype)
            wide = run.widened(no_errors(len(scale))._replace(scale=scale))
            output = half_precision.element_errors(run.data, wide.output, moments, case.dtype)
            run = replace(run, output=output._replace(**gradients_of(run.output)))
        if self._infinite.any():
            run = replace(run, output=constant(run.data, run.output, run.padded(self._infinite)))
            run = replace(run, output=undecided(run.output, run.padded(self._vague)))
        if self._nan.any():
            lost = np.broadcast_to(self._nan[:, None], (1, case.channels, 1))
            run = replace(run, bad=tuple(mask | lost for mask in run.bad))
        return run

    # The buffers

    def _decay(self, k: int) -> None:
        walk, channels = self.walk, self.walk.case.channels
        uncertain = self._uncertain()
        walk.buffers.tracked += 1
        zero = Estimate(np.zeros(channels), np.zeros(channels))
        nowhere = np.zeros(channels, np.bool_)
        common = {"momentum": right_momentum(walk), "poisoned": nowhere, "n": 1.0, "below": 0.0}
        walk.buffers.mean = updated(walk, walk.buffers.mean, zero, **common)  # type: ignore[arg-type]
        walk.buffers.var = updated(walk, walk.buffers.var, zero, **common)  # type: ignore[arg-type]
        self._overflow(k, uncertain)

    def _round_buffers(self, k: int, before: tuple[Floats, Floats]) -> None:
        """Add the errors of an update whose steps are rounded in the half dtype."""
        walk, c = self.walk, self.walk.case.channels
        output = next(iter(walk.steps[k].values())).output
        n = walk.case.at(k).total_of(walk.group)
        below = max(n - 1, 1) if walk.contract.running_var == "unbiased" else n
        moments = (output.mean[:c], output.var[:c] * n / below)
        for name, old, moment in zip(("mean", "var"), before, moments, strict=True):
            value, bound = getattr(walk.buffers, name)
            error = half_precision.buffer_error(
                moment, np.nan_to_num(old), right_momentum(walk), walk.case.param_dtype
            )
            judged = np.isfinite(value)
            bound = np.where(judged, bound + error, bound)
            beyond = judged & (np.abs(value) + bound >= FACTS[walk.case.param_dtype].overflow)
            setattr(walk.buffers, name, Estimate(value, np.where(beyond, np.inf, bound)))

    def _uncertain(self) -> Bools:
        """Return where the running variance may be NaN: after an overflow, or an input that is not finite."""
        value, bound = self.walk.buffers.var
        return np.isinf(bound) | (~np.isfinite(value) & ~self._infinite)

    def _batch_uncertain(self, k: int) -> Bools:
        """Return where the variance of step k's batch may be NaN: after an overflow, or a poisoned input."""
        step, c = next(iter(self.walk.steps[k].values())), self.walk.case.channels
        known = self._batch_infinite.get(k, np.zeros_like(self._infinite))
        uncertain: Bools = (np.isinf(step.output.var_bound[:c]) | step.poisoned) & ~known
        return uncertain

    def _overflow(self, k: int, uncertain: Bools) -> None:
        """Note which running variances the update of step k makes infinite or NaN, and which stay so.

        One that was `uncertain` before may have been NaN: then it stays NaN.
        """
        walk = self.walk
        momentum = right_momentum(walk)
        new = self._batch_infinite.get(k, np.zeros_like(self._infinite))
        nan = self._nan | (new & (momentum == 0)) | (self._infinite & (momentum == 1))  # 0 x infinity
        infinite = (self._infinite & (momentum < 1)) | (new & (momentum > 0))
        self._infinite, self._nan = infinite & ~nan, nan
        self._vague = self._infinite & (self._vague | uncertain)
        self._mark(single=walk.case.at(k).total_of(walk.group) == 1)

    def _mark(self, *, single: bool = False) -> None:
        """Expect a running variance that is not finite where it is infinite or NaN; all if divided by 0."""
        lost = self._infinite | self._nan | single
        if lost.any():
            value, bound = self.walk.buffers.var
            self.walk.buffers.var = Estimate(np.where(lost, np.nan, value), np.where(lost, 0.0, bound))
