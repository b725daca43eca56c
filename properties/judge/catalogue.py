"""The catalogue: every property by its stable id, and the judge that asks them all.

Adding a property is one new file, with all that is said of it, and one line here. Ids are part of reports,
options and files of known discrepancies: they never change.
"""

from __future__ import annotations

from collections.abc import Iterable

from properties.case import Case
from properties.domain import Contract, DomainError
from properties.expectation.expected import Expected
from properties.judge.agreement import AGREEMENT
from properties.judge.batch_count import NUM_BATCHES_TRACKED
from properties.judge.communication import COLLECTIVES, EVAL_IS_LOCAL
from properties.judge.ending import ENDING
from properties.judge.module_conversion import CONVERSION
from properties.judge.nonfinite import NONFINITE
from properties.judge.numeric import FORWARD, GRAD_BIAS, GRAD_INPUT, GRAD_WEIGHT, RUNNING_MEAN, RUNNING_VAR
from properties.judge.property import Property
from properties.judge.refusal import REFUSAL
from properties.judge.reruns import REPEATABLE, SCALING
from properties.judge.same_tensors import IDENTITY
from properties.judge.tensor_form import DTYPE_AND_LAYOUT, PURITY
from properties.observation import Observation
from properties.verdict import Verdict, undecided

_ALL = (
    FORWARD,
    RUNNING_MEAN,
    RUNNING_VAR,
    NUM_BATCHES_TRACKED,
    GRAD_INPUT,
    GRAD_WEIGHT,
    GRAD_BIAS,
    AGREEMENT,
    DTYPE_AND_LAYOUT,
    PURITY,
    IDENTITY,
    EVAL_IS_LOCAL,
    COLLECTIVES,
    NONFINITE,
    REFUSAL,
    ENDING,
    REPEATABLE,
    SCALING,
    CONVERSION,
)
PROPERTIES: dict[str, Property] = {one.id: one for one in _ALL}
NUMERIC = tuple(one.id for one in _ALL if one.is_numeric)


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
        return tuple(undecided(one, reason) for one in ids if not PROPERTIES[one].needs_probe)
    if case.ragged_grad:
        ids = tuple(one for one in ids if PROPERTIES[one].of_ragged_cases)
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


def listing() -> str:
    """Return the ids, each with what must hold, as lines of a help text."""
    width = max(map(len, PROPERTIES))
    return "\n".join(f"  {name:<{width}}  {one.holds}" for name, one in PROPERTIES.items())


def page() -> str:
    """Return the page of properties as Markdown."""
    parts = [_HEAD]
    for name, one in PROPERTIES.items():
        parts.append(
            f"## {name}\n\n{one.holds}\n\n- looks at: {one.quantities}\n- not judged: {one.not_judged}\n"
        )
    return "\n".join(parts)


_HEAD = """# The properties

Made by `python -m verify properties --table docs/properties.md`; do not edit.

What is judged of every case. Each property holds, is violated, or is undecided, which is counted. An element
is within its bound if |observed - expected| is at most what rounding can do, of which the reference tells. A
quantity is named by its step, from 0 on. `--properties ID,...` judges only some of them.
"""
