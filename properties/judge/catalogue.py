"""The catalogue: every property by its stable id, and the judge that asks them all.

Adding a property is one new file and one line here. Ids are part of reports, options and files of known
discrepancies: they never change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from properties.case import Case
from properties.domain import Contract, DomainError
from properties.expectation.expected import Expected
from properties.judge.agreement import agreement
from properties.judge.batch_count import num_batches_tracked
from properties.judge.communication import collectives, eval_is_local
from properties.judge.ending import ending
from properties.judge.module_conversion import conversion
from properties.judge.nonfinite import nonfinite
from properties.judge.numeric import numeric
from properties.judge.refusal import refusal
from properties.judge.reruns import repeatable, scaling
from properties.judge.tensor_form import dtype_and_layout, purity
from properties.observation import Observation
from properties.verdict import Verdict, undecided

Judge = Callable[[Case, Observation, Expected, Contract], Verdict | None]


@dataclass(frozen=True, slots=True)
class Property:
    """A named pure function of a case, what was observed and what is expected.

    Attributes:
        id: Stable name.
        violation: One clause that says what a violation means.
        judge: The function; it returns None where the property does not apply to the case.
    """

    id: str
    violation: str
    judge: Judge


def _number(name: str, words: str, *, quantity: str = "") -> Property:
    clause = f"{words} is farther from the reference than rounding allows"
    return Property(name, clause, numeric(quantity or name, property_id=name))


_ALL = (
    _number("forward", "the output", quantity="output"),
    _number("running_mean", "the running mean"),
    _number("running_var", "the running variance"),
    Property(
        "num_batches_tracked", "the count of training batches is not what it must be", num_batches_tracked
    ),
    _number("grad_input", "the input's gradient"),
    _number("grad_weight", "the weight's gradient"),
    _number("grad_bias", "the bias's gradient"),
    Property("agreement", "the ranks of a group hold different running buffers", agreement),
    Property(
        "dtype_and_layout", "a tensor has not the dtype, shape or memory that it must have", dtype_and_layout
    ),
    Property("purity", "the subject modified a tensor that is not its own", purity),
    Property("eval_is_local", "the subject communicates in evaluation mode", eval_is_local),
    Property("collectives", "the ranks of a group issue different collectives", collectives),
    Property("nonfinite", "a non-finite input does not make its channel non-finite", nonfinite),
    Property("refusal", "an input that must be refused is not refused alike on every rank", refusal),
    Property("ending", "a rank hangs, dies or raises on a case that it must accept", ending),
    Property("repeatable", "the same case gives other bits the second time", repeatable),
    Property("scaling", "scaling by a power of two does not scale the results exactly", scaling),
    Property("conversion", "conversion of a tree of modules changes more than it must, or less", conversion),
)
PROPERTIES: dict[str, Property] = {one.id: one for one in _ALL}
_OF_PROBES = ("repeatable", "scaling", "conversion")
_OF_RAGGED_CASES = ("ending", "refusal")


def judge(
    case: Case,
    observation: Observation,
    expected: Expected,
    contract: Contract,
    *,
    only: Iterable[str] | None = None,
) -> tuple[Verdict, ...]:
    """Return what every property, or those in `only`, that applies to `case` says of `observation`.

    Where the observation is not of this case (another number of ranks, or inputs that a rank drew
    otherwise than we did), our own machinery has failed: every verdict is UNDECIDED and says so.

    Raises:
        DomainError: If `only` names an unknown property.
    """
    ids = tuple(PROPERTIES) if only is None else select(only)
    reason = _mistake(case, observation, expected)
    if reason:
        return tuple(undecided(one, reason) for one in ids if one not in _OF_PROBES)
    if case.ragged_grad:
        ids = tuple(one for one in ids if one in _OF_RAGGED_CASES)
    verdicts = (PROPERTIES[one].judge(case, observation, expected, contract) for one in ids)
    return tuple(verdict for verdict in verdicts if verdict is not None)


def select(ids: Iterable[str]) -> tuple[str, ...]:
    """Return the given property ids in the catalogue's order.

    Raises:
        DomainError: If one is unknown.
    """
    wanted = set(ids)
    unknown = sorted(wanted - PROPERTIES.keys())
    if unknown or not wanted:
        raise DomainError(f"Expected properties among {', '.join(PROPERTIES)}, but got {unknown}.")
    return tuple(one for one in PROPERTIES if one in wanted)


def _mistake(case: Case, observation: Observation, expected: Expected) -> str:
    """Return in what way the observation is not one of `case`, or nothing."""
    ranks = [seen.rank for seen in observation.ranks]
    if ranks != list(range(case.world_size)):
        return f"machinery: ranks {ranks} were observed in a case of world size {case.world_size}"
    for seen in observation.ranks:
        wanted = expected.digests.get(seen.rank)
        if wanted and seen.digest and seen.digest != wanted:
            return f"machinery: rank {seen.rank} drew inputs with digest {seen.digest}, expected {wanted}"
    return ""
