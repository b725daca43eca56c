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
from properties.expectation.group_step import numbers, shares, step_input
from properties.expectation.running_buffers import right_momentum, update_buffers, updated
from properties.expectation.schedule_state import Estimate, RankStep, Walk, accumulation_dtype
from properties.mechanisms import encoded_moments, half_precision
from properties.mechanisms.carrying import carried, moments_of, no_errors, scale_of
from properties.mechanisms.cuda_kernels import extra_depth, halves_partial_sums, levels, reads_buffers_late
from properties.mechanisms.native_kernels import adds_one_by_one, is_ambiguous, may_go_by_channels
from properties.mechanisms.revisions import constant, finite, gradients_of, training_gradient, undecided
from properties.mechanisms.step_data import Bools
from properties.mechanisms.step_run import StepRun
from properties.values import elements
from properties.values.misread_layouts import cotangent_like_input
from reference.padding import Layout, pack
from reference.program import compiled_step
from reference.rounding import FACTS
from reference.signature import StepInput, StepOutput, StepScalars

Sites = Mapping[str, Mapping[tuple[int, int], Bools]]
"""By mechanism, where it may act: the channels, by rank and step."""
_STRIDED = ("permuted", "sliced")


def _unmerged(output: StepOutput, channels: Bools) -> StepOutput:
    """Return `output` with nothing decided in channels whose merged variance is not known."""
    output = undecided(output, channels)
    return output._replace(var_bound=np.where(channels, np.inf, output.var_bound))


def _read_from_freed(run: StepRun, step: RankStep) -> RankStep:
    """Return a rank's share whose gradients were computed with whatever lies in freed memory."""
    every = np.ones(run.where.bucket.channels, np.bool_)
    output = undecided(step.output, every, names=("grad_input", "grad_weight"))
    return replace(step, output=output, poisoned=np.zeros_like(step.poisoned))


def _computed(where: Layout, given: StepInput) -> StepOutput:
    return numbers(compiled_step(where.bucket)(given))


class MechanismFollower(Follower):
    """Follows the schedule of one process group with the mechanisms of `sites`."""

    def __init__(self, walk: Walk, sites: Sites) -> None:
        super().__init__(walk)
        self._sites = sites
        self._runs: dict[int, list[StepRun]] = {}
        self._moved: set[int] = set()
        self._rounded: set[int] = set()
        nowhere = np.zeros(walk.case.channels, np.bool_)
        self._infinite, self._nan = nowhere, nowhere
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
        walk, total = self.walk, self.walk.case.total_of(self.walk.group)
        if self._at("lost-update", k).any():
            walk.buffers.tracked += 1
            return
        if total == 0:
            if self._at("decayed-buffers", k).any():
                self._decay()
            else:
                super().update(k, again=again)
            return
        before = (walk.buffers.mean.value, walk.buffers.var.value)
        update_buffers(walk, k, again=again or k in self._moved)
        if k in self._rounded:
            self._round_buffers(k, before)
        self._overflow(k)

    def before_backward(self, k: int) -> None:
        """Change the shares that the backward of step k is read off."""
        walk, case = self.walk, self.walk.case
        buffers = case.steps[k].mode == "eval" and case.tracking
        stale = buffers and self._at("stale-buffers", k).any()
        freed = buffers and self._at("freed-buffers", k).any()
        misread = self._at("misread-layout", k).any()
        halved, partly = self._at("half-sums", k).any(), self._at("half-partial-sums", k).any()
        for run in self._runs[k] if stale or freed or misread or halved or partly else ():
            late = {
                rank: bool(stale and (walk.device == "cpu" or reads_buffers_late(case, rank)))
                for rank in run.members
            }
            for one in set(late.values()):
                again, output = run, run.output
                if one or misread:
                    again, output = self._read_again(k, run, stale=one, misread=bool(misread))
                if halved:
                    output = self._half_sums(again, output)
                if partly:
                    output = self._half_partial_sums(again, output)
                for rank in (rank for rank in run.members if late[rank] == one):
                    step = replace(walk.steps[k][rank], output=output)
                    if freed and may_go_by_channels(case, rank):
                        step = _read_from_freed(again, step)
                    walk.steps[k][rank] = step

    def _at(self, mechanism: str, k: int) -> Bools:
        """Return the channels in which a mechanism may act in step k of this group, (C,)."""
        found = self._sites.get(mechanism, {}).get((self.walk.group[0], k))
        return np.zeros(self.walk.case.channels, np.bool_) if found is None else found

    # The forward

    def _run(self, k: int, members: tuple[int, ...], *, training: bool) -> StepRun:
        walk, grade = self.walk, self.walk.grade
        deeper = grade == "A" and self._at("sequential-sums", k).any()
        if deeper and walk.device == "cpu" and any(adds_one_by_one(walk.case, rank) for rank in members):
            walk.grade = "B"
        try:
            where, given, bad = step_input(walk, k, members, training=training)
        finally:
            walk.grade = grade
        if deeper and walk.device != "cpu":
            given = self._by_few_threads(where, given, members)
        errors = no_errors(where.bucket.channels)
        return StepRun(members, training, where, given, _computed(where, given), tuple(bad), errors)

    def _by_few_threads(self, where: Layout, given: StepInput, members: tuple[int, ...]) -> StepInput:
        """Return a step's input with the depth of what few threads of a block add up."""
        scalars, at = np.array(given.scalars), StepScalars._fields.index("depth_u")
        extra = np.zeros(where.bucket.ranks + 1)
        extra[: len(members)] = [extra_depth(self.walk.case, rank) for rank in members]
        extra *= scalars[StepScalars._fields.index("u")]
        scalars[at] += extra.max()
        return given._replace(scalars=scalars, depths=given.depths + extra[where.owner][:, None])

    def _revised(self, k: int, run: StepRun) -> StepRun:
        if not run.training:
            return self._evaluated(k, run)
        infinite = run.padded(np.zeros_like(self._infinite))
        if len(run.members) > 1:
            if (active := self._at("decoded-variance", k) & ~run.poisoned).any():
                run, infinite = self._decoded(k, run, run.padded(active))
            if self._at("rounded-counts", k).any():
                unknown = np.isinf(run.output.var_bound)
                run, merged = self._counted(k, run)
                infinite = infinite | merged
                run = replace(run, output=_unmerged(run.output, unknown & ~infinite))
        if self._at("half-statistics", k).any():
            run = self._half_statistics(k, run)
        if self._at("half-mean", k).any():
            run = self._half_mean(k, run)
        if infinite.any():
            run = replace(run, output=constant(run.data, run.output, infinite))
            self._batch_infinite[k] = infinite[: self.walk.case.channels]
        return run

    def _evaluated(self, k: int, run: StepRun) -> StepRun:
        case = self.walk.case
        if self._at("half-evaluation", k).any():
            moments, facts = run.moments, FACTS[case.dtype]
            scale = 3.0 * facts.u * moments.scale + facts.underflow
            wide = run.widened(no_errors(len(scale))._replace(scale=scale))
            output = half_precision.element_errors(run.data, wide.output, moments, case.dtype)
            run = replace(run, output=output._replace(**gradients_of(run.output)))
        if self._infinite.any():
            run = replace(run, output=constant(run.data, run.output, run.padded(self._infinite)))
        if self._nan.any():
            lost = np.broadcast_to(self._nan[:, None], (1, case.channels, 1))
            run = replace(run, bad=tuple(mask | lost for mask in run.bad))
        return run

    def _decoded(self, k: int, run: StepRun, active: Bools) -> tuple[StepRun, Bools]:
        """Return the run with the error of decoded variances, and the channels in which one is infinite."""
        data, walk = run.data, self.walk
        local = encoded_moments.local_moments(data)
        error = (local.counts * encoded_moments.decoding_error(local, data)).sum(axis=0) / data.scalars.n
        infinite = np.zeros_like(active)
        if walk.case.eps == 0:
            dtype = accumulation_dtype(walk.case, walk.contract)
            surely, possibly = encoded_moments.zero_variances(local, data, dtype)
            squares = (
                4.0 * data.greatest(np.abs(data.x)).max(axis=0) ** 2
            )  # of a mean; times 0 it would be NaN
            infinite = surely.any(axis=0) & active & (squares < data.scalars.largest)
            error = np.where(possibly.any(axis=0) & ~infinite, np.inf, error)
        error, moments = np.where(active, error, 0.0), run.moments
        _, widest = scale_of(data, moments.var, moments.var_error + error)
        more = np.where(
            np.isinf(widest), np.inf, widest - np.where(np.isinf(widest), 0.0, moments.scale_error)
        )
        run = run.widened(no_errors(len(error))._replace(scale=np.where(active, np.maximum(more, 0.0), 0.0)))
        self._moved.add(k)
        return replace(run, output=run.output._replace(var_bound=run.output.var_bound + error)), infinite

    def _counted(self, k: int, run: StepRun) -> tuple[StepRun, Bools]:
        """Return the run of a merge with rounded counts, and the channels whose variance is infinite."""
        data, case = run.data, self.walk.case
        merged = encoded_moments.merged_by_counts(encoded_moments.local_moments(data), data, case.param_dtype)
        with np.errstate(all="ignore"):
            var, var_error = merged.squares / merged.total, merged.squares_error / merged.total
        lost = ~np.isfinite(merged.mean) | np.isnan(var)
        infinite = np.isinf(var) & ~lost
        known = ~(lost | infinite)
        summed = known & np.isfinite(run.output.mean_bound)  # no sum of a rank can overflow
        moments = moments_of(
            data,
            (np.where(known, merged.mean, 0.0), np.where(summed, merged.mean_error, np.inf)),
            (np.where(known, var, 1.0), np.where(known, var_error, np.inf)),
        )
        rows, scalars = np.array(run.given.parameters), np.array(run.given.scalars)
        rows[2:6] = moments.mean, moments.mean_error, moments.var, moments.var_error
        scalars[StepScalars._fields.index("training")] = 0.0
        evaluated = _computed(run.where, run.given._replace(parameters=rows, scalars=scalars))
        output = training_gradient(data, evaluated, moments)
        gone = np.broadcast_to(lost[: case.channels, None], (1, case.channels, 1))
        stored, stored_error = self._stored_variance(merged)
        whole = np.isfinite(stored)
        self._moved.add(k)
        output = output._replace(
            mean=moments.mean,
            mean_bound=moments.mean_error,
            var=np.where(whole, stored, 1.0),
            var_bound=np.where(whole, stored_error, np.inf),
        )
        return replace(run, output=output, bad=tuple(mask | gone for mask in run.bad)), infinite

    def _stored_variance(self, merged: encoded_moments.Merged) -> tuple[elements.Floats, elements.Floats]:
        """Return a biased variance that the update makes squares / (count - 1), and its error."""
        n = float(max(self.walk.case.total_of(self.walk.group), 1))
        unbiased = self.walk.contract.running_var == "unbiased"
        divided, corrected = (merged.total - 1.0, n - 1.0) if unbiased else (merged.total, n)
        with np.errstate(all="ignore"):
            factor = corrected / (divided * n)
            return merged.squares * factor, merged.squares_error * abs(factor)

    def _half_statistics(self, k: int, run: StepRun) -> StepRun:
        case = self.walk.case
        mean, scale, var_error = half_precision.statistics_errors(run.data, run.moments, case.dtype)
        run = run.widened(no_errors(len(mean))._replace(mean=mean, scale=scale))
        output = run.output
        if (
            case.input_layout in _STRIDED or case.strided_buffers
        ):  # also in training the buffers' strides count
            output = half_precision.element_errors(run.data, output, run.moments, case.dtype)
        self._moved.add(k)
        self._rounded.add(k)
        bounds = {"mean_bound": output.mean_bound + mean, "var_bound": output.var_bound + var_error}
        return replace(run, output=output._replace(**bounds))

    def _half_mean(self, k: int, run: StepRun) -> StepRun:
        """Return the run with a mean rounded to float16; one that may overflow in it decides nothing."""
        facts, moments = FACTS["float16"], run.moments
        reached = np.abs(moments.mean) + moments.mean_error
        error = facts.u * reached + facts.underflow
        run = run.widened(no_errors(len(error))._replace(mean=error))
        beyond = reached * (1.0 + facts.u) >= facts.overflow
        self._moved.add(k)
        output = run.output._replace(mean_bound=np.where(beyond, np.inf, run.output.mean_bound + error))
        return replace(run, output=undecided(output, beyond))

    # The buffers

    def _decay(self) -> None:
        walk, channels = self.walk, self.walk.case.channels
        walk.buffers.tracked += 1
        zero = Estimate(np.zeros(channels), np.zeros(channels))
        nowhere = np.zeros(channels, np.bool_)
        common = {"momentum": right_momentum(walk), "poisoned": nowhere, "n": 1.0, "below": 0.0}
        walk.buffers.mean = updated(walk, walk.buffers.mean, zero, **common)  # type: ignore[arg-type]
        walk.buffers.var = updated(walk, walk.buffers.var, zero, **common)  # type: ignore[arg-type]
        self._mark()

    def _round_buffers(self, k: int, before: tuple[elements.Floats, elements.Floats]) -> None:
        """Add the errors of an update whose steps are rounded in the half dtype."""
        walk, c = self.walk, self.walk.case.channels
        output = next(iter(walk.steps[k].values())).output
        n = walk.case.total_of(walk.group)
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

    def _overflow(self, k: int) -> None:
        """Note which running variances the update of step k makes infinite or NaN, and which stay so."""
        walk = self.walk
        momentum = right_momentum(walk)
        new = self._batch_infinite.get(k, np.zeros_like(self._infinite))
        nan = self._nan | (new & (momentum == 0)) | (self._infinite & (momentum == 1))  # 0 x infinity
        infinite = (self._infinite & (momentum < 1)) | (new & (momentum > 0))
        self._infinite, self._nan = infinite & ~nan, nan
        self._mark(single=walk.case.total_of(walk.group) == 1)

    def _mark(self, *, single: bool = False) -> None:
        """Expect a running variance that is not finite where it is infinite or NaN; all if divided by 0."""
        lost = self._infinite | self._nan | single
        if lost.any():
            value, bound = self.walk.buffers.var
            self.walk.buffers.var = Estimate(np.where(lost, np.nan, value), np.where(lost, 0.0, bound))

    # The backward

    def _read_again(self, k: int, run: StepRun, *, stale: bool, misread: bool) -> tuple[StepRun, StepOutput]:
        """Return the run and its output with gradients of other buffers, or of a cotangent read otherwise."""
        walk, c = self.walk, self.walk.case.channels
        rows = np.array(run.given.parameters)
        if stale:
            for row, estimate in ((2, walk.buffers.mean), (4, walk.buffers.var)):
                known = np.isfinite(estimate.value)
                rows[row, :c] = np.where(known, estimate.value, 1.0)
                rows[row + 1, :c] = np.where(known, estimate.bound, np.inf)
        given = run.given._replace(parameters=rows)
        if misread:
            given = self._misread(k, run, given)
        again = replace(run, given=given, output=_computed(run.where, given), errors=no_errors(rows.shape[1]))
        again = again.widened(run.errors)
        output = again.output
        if stale and self._infinite.any():
            output = constant(again.data, output, run.padded(self._infinite))
        return again, run.output._replace(**gradients_of(output))

    def _misread(self, k: int, run: StepRun, given: StepInput) -> StepInput:
        case = self.walk.case
        if any(held < case.count_of(rank) for rank, held in zip(run.members, run.where.counts, strict=True)):
            return given  # of a block that repeats, one period is there
        cotangents = []
        for rank in run.members:
            x, g = elements.complete(case, (rank,))[rank, k]
            if is_ambiguous(case, rank):
                _, g = cotangent_like_input(case, rank, x, g)
            cotangents.append(np.broadcast_to(g, x.shape))
        return given._replace(g=pack(run.where, cotangents))

    def _half_sums(self, run: StepRun, output: StepOutput) -> StepOutput:
        case, data, moments = self.walk.case, run.data, run.moments
        mixed = case.param_dtype != case.dtype and (case.has_weight or case.tracking)
        errors, lost = half_precision.sum_errors(data, output, moments, case.dtype, mixed=mixed)
        changed = undecided(carried(data, output, moments, finite(errors)), lost)
        return output._replace(**gradients_of(changed))

    def _half_partial_sums(self, run: StepRun, output: StepOutput) -> StepOutput:
        case, data, together = self.walk.case, run.data, run.training and len(run.members) > 1
        passed = np.full((data.ranks, 1), -1.0)
        for row, rank in enumerate(run.members):
            if halves_partial_sums(case, rank, synchronised=together, training=run.training):
                passed[row] = levels(case, rank)
        errors, lost = half_precision.partial_sum_errors(data, run.moments, case.dtype, passed)
        changed = undecided(carried(data, output, run.moments, finite(errors)), lost)
        return output._replace(**gradients_of(changed))
