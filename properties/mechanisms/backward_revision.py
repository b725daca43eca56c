"""Backward revision: what mechanisms make of a step's gradients, as the backward finds memory and buffers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from properties.expectation.schedule_state import RankStep, Walk
from properties.mechanisms import half_precision
from properties.mechanisms.carrying import Errors, carried, deeper_sums, no_errors
from properties.mechanisms.cuda_kernels import halves_partial_sums, levels, reads_buffers_late
from properties.mechanisms.native_kernels import extra_backward_depth, is_ambiguous, may_go_by_channels
from properties.mechanisms.revisions import constant, finite, gradients_of, undecided
from properties.mechanisms.step_data import Bools
from properties.mechanisms.step_run import StepRun, computed
from properties.values import elements
from properties.values.misread_layouts import cotangent_like_input
from reference.padding import pack
from reference.signature import StepInput, StepOutput

OF_BUFFERS = ("stale-buffers", "freed-buffers")
"""Mechanisms of the backward of an evaluation with buffers."""
OF_GRADIENTS = ("misread-layout", "half-sums", "half-partial-sums", "sequential-backward")
"""Mechanisms of any backward."""


@dataclass(frozen=True, slots=True)
class BackwardRevision:
    """What mechanisms change in the backward of one step of a process group.

    Attributes:
        walk: The state of the schedule when the backward runs.
        k: The step.
        acting: Those of `OF_BUFFERS` and `OF_GRADIENTS` that act in it.
        infinite: The channels whose running variance is infinite by then, (C,).
    """

    walk: Walk
    k: int
    acting: frozenset[str]
    infinite: Bools

    def shares(self, run: StepRun) -> dict[int, RankStep]:
        """Return the members' shares of the step, revised."""
        walk = self.walk
        stale = {rank: self._reads_late(rank) for rank in run.members}
        revised = {}
        for late in set(stale.values()):
            again, output = run, run.output
            if late or "misread-layout" in self.acting:
                again, output = self._read_again(run, stale=late)
            if "half-sums" in self.acting:
                output = self._with_half_sums(again, output)
            if "half-partial-sums" in self.acting:
                output = self._with_half_partial_sums(again, output)
            if "sequential-backward" in self.acting and walk.grade == "A":
                output = self._with_deeper_sums(again, output)
            for rank in (rank for rank in run.members if stale[rank] == late):
                step = replace(walk.steps[self.k][rank], output=output)
                freed = "freed-buffers" in self.acting and may_go_by_channels(walk.case.at(self.k), rank)
                revised[rank] = _read_from_freed(again, step) if freed else step
        return revised

    def _reads_late(self, rank: int) -> bool:
        if "stale-buffers" not in self.acting:
            return False
        return self.walk.device == "cpu" or reads_buffers_late(self.walk.case.at(self.k), rank)

    def _read_again(self, run: StepRun, *, stale: bool) -> tuple[StepRun, StepOutput]:
        """Return the run and its output with gradients of other buffers, or of a cotangent read otherwise."""
        walk, c = self.walk, self.walk.case.channels
        rows = np.array(run.given.parameters)
        if stale:
            for row, estimate in ((2, walk.buffers.mean), (4, walk.buffers.var)):
                known = np.isfinite(estimate.value)
                rows[row, :c] = np.where(known, estimate.value, 1.0)
                rows[row + 1, :c] = np.where(known, estimate.bound, np.inf)
        given = run.given._replace(parameters=rows)
        if "misread-layout" in self.acting:
            given = self._misread(run, given)
        again = replace(run, given=given, output=computed(run.where, given), errors=no_errors(rows.shape[1]))
        again = again.widened(run.errors)
        output = again.output
        if stale and self.infinite.any():
            output = constant(again.data, output, run.padded(self.infinite))
        return again, run.output._replace(**gradients_of(output))

    def _misread(self, run: StepRun, given: StepInput) -> StepInput:
        case = self.walk.case.at(self.k)
        if any(held < case.count_of(rank) for rank, held in zip(run.members, run.where.counts, strict=True)):
            return given  # of a block that repeats, one period is there
        cotangents = []
        for rank in run.members:
            x, g = elements.complete(case, (rank,))[rank, self.k]
            if is_ambiguous(case, rank):
                _, g = cotangent_like_input(case, rank, x, g)
            cotangents.append(np.broadcast_to(g, x.shape))
        return given._replace(g=pack(run.where, cotangents))

    def _with_half_sums(self, run: StepRun, output: StepOutput) -> StepOutput:
        case = self.walk.case.at(self.k)
        mixed = case.param_dtype != case.dtype and (case.has_weight or case.tracking)
        return _carried(
            run, output, *half_precision.sum_errors(run.data, output, run.moments, case.dtype, mixed=mixed)
        )

    def _with_half_partial_sums(self, run: StepRun, output: StepOutput) -> StepOutput:
        case, data, together = self.walk.case.at(self.k), run.data, run.training and len(run.members) > 1
        passed = np.full((data.ranks, 1), -1.0)
        for row, rank in enumerate(run.members):
            if halves_partial_sums(case, rank, synchronised=together, training=run.training):
                passed[row] = levels(case, rank)
        return _carried(
            run, output, *half_precision.partial_sum_errors(data, run.moments, case.dtype, passed)
        )

    def _with_deeper_sums(self, run: StepRun, output: StepOutput) -> StepOutput:
        extra = np.zeros((run.data.ranks, 1))
        extra[: len(run.members), 0] = [
            extra_backward_depth(self.walk.case.at(self.k), rank) for rank in run.members
        ]
        return _carried(run, output, deeper_sums(run.data, run.moments, extra))


def _carried(run: StepRun, output: StepOutput, errors: Errors, lost: Bools | None = None) -> StepOutput:
    """Return `output` with gradients that cover `errors`, and of which what is `lost` is undecided."""
    changed = carried(run.data, output, run.moments, finite(errors))
    if lost is not None:
        changed = undecided(changed, lost)
    return output._replace(**gradients_of(changed))


def _read_from_freed(run: StepRun, step: RankStep) -> RankStep:
    """Return a rank's share whose gradients were computed with whatever lies in freed memory."""
    every = np.ones(run.where.bucket.channels, np.bool_)
    output = undecided(step.output, every, names=("grad_input", "grad_weight"))
    return replace(step, output=output, poisoned=np.zeros_like(step.poisoned))
