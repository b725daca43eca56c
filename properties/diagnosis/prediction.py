"""A prediction: what a subject that differs in known respects would give for a case, tensor by tensor.

The counterpart of `properties.expectation.expect` for a `Variant`. Each rank walks the schedule by itself,
since a wrong subject's ranks may hold different statistics and buffers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from properties.case import Case
from properties.diagnosis.variant import Ranks, Variant
from properties.domain import Contract, Grade
from properties.expectation.expect import Follower, refusals, store_grad_input, store_output
from properties.expectation.expected import Expected
from properties.expectation.group_step import numbers, shares, step_input
from properties.expectation.parameter_gradients import store_grad_parameter
from properties.expectation.running_buffers import right_momentum, updated
from properties.expectation.schedule_state import Buffers, Estimate, RankStep, Walk, put
from properties.values import elements
from reference.host import precise
from reference.padding import Layout
from reference.signature import StepOutput, StepScalars
from reference.variants import ROOTS, Formula, Weights, compiled_variant

Floats = NDArray[np.float64]
Inputs = dict[tuple[int, int], tuple[Floats, Floats]]


def predict(
    case: Case, contract: Contract, grade: Grade, *, device: str = "cpu", variant: Variant
) -> Expected:
    """Return the tensors that a subject with `variant`'s faults gives, with bounds of first order.

    Args:
        case: The case; one that must be refused, or whose input requires a gradient on some ranks of a group
            only, has no prediction.
        contract: Which convention is right.
        grade: The error model that the bounds are for.
        device: cpu or cuda; selects the table of operations' errors.
        variant: What differs from a right subject.
    """
    inputs: Inputs = elements.complete(case, range(case.world_size))
    if variant.inputs is not None:
        inputs = {(rank, k): variant.inputs(case.at(k), rank, *pair) for (rank, k), pair in inputs.items()}
    contract = msgspec.structs.replace(contract, **_resolved(variant.contract, case))
    found = Expected(refusals=refusals(case), grade=grade)
    if case.ragged_grad or case.wrong:
        return found
    cache: dict[tuple[Any, ...], tuple[Layout, StepOutput, list[NDArray[np.bool_]]]] = {}
    with precise():
        for group in case.process_groups:
            if any(rank in found.refusals for rank in group):
                continue
            members = tuple(range(case.world_size)) if variant.scope == "world" else group
            for rank in group:
                start, zero = elements.parameters(case), np.zeros(case.channels)
                buffers = Buffers(Estimate(start.running_mean, zero), Estimate(start.running_var, zero), 0)
                chosen: Grade = variant.grade or grade  # type: ignore[assignment]
                walk = Walk(case, contract, chosen, device, members, inputs, buffers)
                view = _View(walk, variant, rank, group, cache)
                view.follow()
                for name, by_rank in walk.tensors.items():
                    if rank in by_rank:
                        found.tensors.setdefault(name, {})[rank] = by_rank[rank]
                for name, counts in walk.tracked.items():
                    found.tracked.setdefault(name, {})[rank] = counts[rank]
    return found


def _resolved(changes: dict[str, Any], case: Case) -> dict[str, Any]:
    """Return changes of a contract, an accumulation in the input's dtype, or float32 at most, resolved."""
    if changes.get("accumulate") == "lower":
        return {**changes, "accumulate": "float32" if case.dtype == "float64" else case.dtype}
    return changes


class _View(Follower):
    """One rank's walk through the schedule, with its own statistics and buffers."""

    def __init__(
        self,
        walk: Walk,
        variant: Variant,
        rank: int,
        group: tuple[int, ...],
        cache: dict[tuple[Any, ...], Any],
    ) -> None:
        super().__init__(walk)
        self.variant, self.rank, self.group, self._cache = variant, rank, group, cache
        self._shown = 0

    def forward(self, k: int) -> None:
        case, variant = self.walk.case, self.variant
        training = case.steps[k].mode == "train"
        local = not training and not case.tracking
        local = local or (not training and variant.batch_in_eval == "own")
        members = (self.rank,) if local else self.walk.group
        batch = training or local or bool(variant.batch_in_eval)
        if training and variant.running_in_training and case.tracking:
            batch = False
        self.walk.steps[k] = self._step(k, members, batch=batch)
        store_output(self.walk, k, self.rank)
        if case.tracking:
            self._track(k, times=self._updates(k))
            self.snapshot(str(k))

    def _step(self, k: int, members: tuple[int, ...], *, batch: bool) -> dict[int, RankStep]:
        key = (k, members, batch) if batch else (k, members, batch, self.rank, self.walk.buffers.tracked)
        if key not in self._cache:
            self._cache[key] = self._run(k, members, batch=batch)
        where, output, bad = self._cache[key]
        row = members.index(self.rank)
        mine = output._replace(
            mean=output.mean[row],
            mean_bound=output.mean_bound[row],
            var=output.var[row],
            var_bound=output.var_bound[row],
        )
        found = shares(self.walk, members, where=where, output=mine, bad=bad, training=batch)
        return {rank: found.get(rank, found[self.rank]) for rank in (*self.walk.group, *members)}

    def _run(self, k: int, members: tuple[int, ...], *, batch: bool) -> Any:
        case, variant = self.walk.case.at(k), self.variant
        where, given, bad = step_input(self.walk, k, members, training=batch)
        shifted = None
        if variant.parameters is not None and case.steps[k].mode in variant.parameters_in:
            shifted = given._replace(parameters=_replaced(variant, case.channels, given.parameters, 1.0))
            given = given._replace(parameters=_replaced(variant, case.channels, given.parameters, 0.0))
        if variant.eps is not None:
            scalars = given.scalars.copy()
            scalars[StepScalars._fields.index("eps")] = variant.eps(case)
            given = given._replace(scalars=scalars)
        ranks = Ranks(
            counts=np.array([case.count_of(rank) for rank in members], np.float64),
            samples=np.array([case.batches[rank] for rank in members], np.float64),
            group=np.array([rank in self.group for rank in members]),
            dtype=case.dtype,
            param_dtype=case.param_dtype,
        )
        formula = Formula(*(np.int64(v) for v in _formula(variant)))
        if not batch and variant.sums_in_eval is not None:
            sums = variant.sums_in_eval
            variant = replace(variant, cotangent=sums, projection=sums)
        weights, compiled = _weights(variant, ranks, where.bucket.ranks), compiled_variant(where.bucket)
        output = compiled(given, weights, formula)
        if shifted is not None:
            output = _widened(output, compiled(shifted, weights, formula))
        if variant.swapped_gradients:
            output = output._replace(
                grad_weight=output.grad_bias,
                grad_weight_bound=output.grad_bias_bound,
                grad_bias=output.grad_weight,
                grad_bias_bound=output.grad_weight_bound,
            )
        return where, numbers(output), bad

    def _updates(self, k: int) -> int:
        case = self.walk.case.at(k)
        times = self.variant.updates(case, k, case.total_of(self.group))
        return times if self.variant.updates_on(case, self.rank) else 0

    def _track(self, k: int, *, times: int) -> None:
        case, variant, walk = self.walk.case, self.variant, self.walk
        self._shown += variant.counted(case, k, case.at(k).total_of(self.group))
        if case.steps[k].mode == "train":
            walk.buffers.tracked += 1
        for _ in range(times):
            self._update(k)

    def _update(self, k: int) -> None:
        case, variant, walk, buffers = self.walk.case, self.variant, self.walk, self.walk.buffers
        step, c = walk.steps[k][self.rank], case.channels
        total = case.at(k).total_of(self.group)
        n, below = variant.bessel(total, case.at(k).count_of(self.rank), len(self.group))
        if walk.contract.running_var == "biased" or total == 0:
            below = 0.0
        momentum = variant.momentum(case, buffers.tracked, right_momentum(walk))
        mean = Estimate(step.output.mean[:c], step.output.mean_bound[:c])
        var = Estimate(step.output.var[:c], step.output.var_bound[:c])
        if variant.tracks:
            var = _instead(var, case.eps, invstd=variant.tracks == "invstd")
        if variant.exchanged:
            mean, var = var, mean
        common = {"momentum": momentum, "poisoned": step.poisoned}
        buffers.mean = updated(walk, buffers.mean, mean, n=max(total, 1), below=0.0, **common)  # type: ignore[arg-type]
        buffers.var = updated(walk, buffers.var, var, n=n, below=max(below, 0.0), **common)  # type: ignore[arg-type]

    def snapshot(self, at: str) -> None:
        buffers, dtype = self.walk.buffers, self.walk.case.param_dtype
        put(self.walk, f"running_mean.{at}", self.rank, *buffers.mean, dtype=dtype)
        put(self.walk, f"running_var.{at}", self.rank, *buffers.var, dtype=dtype)
        self.walk.tracked.setdefault(f"num_batches_tracked.{at}", {})[self.rank] = self._shown

    def backward(self, k: int) -> None:
        case, walk, step = self.walk.case, self.walk, self.walk.case.steps[k]
        if step.mode == "train" and case.tracking and case.recomputes(k, self.group[0]):
            for _ in range(self.variant.recomputed - (walk.contract.recompute_updates == "once")):
                self._track(k, times=self._updates(k))
        if not step.accumulate or self.variant.forgets:
            walk.sums.clear()
        if step.mode == "eval" and self.variant.training_gradient_in_eval:
            forward = self.walk.steps[k]
            walk.steps[k] = self._step(k, self.walk.group, batch=True)
            self._store(k)
            walk.steps[k] = forward
            return
        self._store(k)

    def _store(self, k: int) -> None:
        case, walk = self.walk.case, self.walk
        if case.input_requires_grad(self.rank):
            store_grad_input(walk, k, self.rank)
        names: tuple[Literal["weight", "bias"], ...] = ("weight", "bias")
        for name in names:
            if case.trains(name, k):
                store_grad_parameter(walk, k, name)


def _replaced(variant: Variant, c: int, given: Floats, errors: float) -> Floats:
    """Return the variant's parameter rows, of buffers that are off by `errors` times their bounds."""
    assert variant.parameters is not None
    rows = given.copy()
    for row in (2, 4):
        bound = rows[row + 1, :c]
        rows[row, :c] += errors * np.where(np.isfinite(bound), bound, 0.0)
    rows[:, :c] = variant.parameters(rows[:, :c])
    return rows


def _widened(output: StepOutput, shifted: StepOutput) -> StepOutput:
    """Return `output` with what shifted buffers change in it added to its bounds."""
    return output._replace(
        y_bound=output.y_bound + abs(output.y - shifted.y),
        grad_input_bound=output.grad_input_bound + abs(output.grad_input - shifted.grad_input),
    )


def _instead(var: Estimate, eps: float, *, invstd: bool) -> Estimate:
    """Return 1 / sqrt(var + eps), or var + eps."""
    shifted = Estimate(var.value + eps, var.bound + 2.0**-20 * eps)
    if not invstd:
        return shifted
    root = 1.0 / np.sqrt(shifted.value)
    return Estimate(root, root * (shifted.bound / shifted.value + 2.0**-20))


def _formula(variant: Variant) -> tuple[int, ...]:
    exchanged = ("", "variance", "squares").index(variant.exchanged_moments)
    flags = (variant.derived, variant.consistent, exchanged, variant.swapped_sums, variant.corrected)
    return ROOTS.index(variant.root), *(int(flag) for flag in flags)


def _weights(variant: Variant, ranks: Ranks, size: int) -> Weights:
    """Return the variant's weights, padded to `size` ranks."""

    def padded(rows: Floats) -> Floats:
        full = np.zeros((size, size))
        full[: ranks.size, : ranks.size] = rows
        return full

    tracked = variant.tracked or variant.merge
    scale = np.ones(size)
    scale[: ranks.size] = variant.scale(ranks)
    weighed = (
        *(variant.merge.mean, variant.merge.within, variant.merge.between),
        *(tracked.mean, tracked.within, tracked.between),
        *(variant.cotangent, variant.projection, variant.weight, variant.bias),
    )
    merges = (variant.merge, tracked)
    with np.errstate(all="ignore"):
        centers = [padded(weigh(ranks)) for weigh in (merge.center or merge.mean for merge in merges)]
        return Weights(*(*map(padded, (weigh(ranks) for weigh in weighed)), scale, *centers))
