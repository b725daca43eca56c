"""Explaining: a violated property as a message for people, with the lines that reproduce it.

The form is that of Elle's explanations: what is violated, the case, *Let* the names, *Then* what must hold,
*However* what was seen. The text is made of data only; nothing is run here.
"""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from properties.case import Case, encode
from properties.judge.catalogue import PROPERTIES
from properties.judge.ending import describe_ending
from properties.observation import RankObservation
from properties.values.elements import affine, complete, parameters
from properties.verdict import Discrepancy, Outcome, Verdict
from verify.known.entries import Entry
from verify.report.ledger_words import first_mismatch, summary
from verify.report.resemblance import Likeness
from verify.report.words import case_words, count, listing, ranks, ratio, rough, shown
from verify.result import ALWAYS, History
from verify.subject import Subject
from verify.trial import Trial

MAX_CASE_CHARACTERS = 400
_MAX_STACK_LINES = 14
_MACHINERY = ("/verify/ranks/", '"<string>"', "/torch/nn/modules/module.py")
_INDENT = " " * 9
_MOST_NAMED = 3
_OF_A_CHANNEL = (
    *("output", "grad_input", "grad_weight", "grad_bias"),
    *("running_mean", "running_var"),
)
_FEW_VALUES = 8
"""Input values of a channel that are printed."""
_WEAK = 2.0
"""Ratio below which a cause is a weak lead."""
NOTHING_KNOWN = Likeness()


@dataclass(frozen=True, slots=True, kw_only=True)
class Occurrence:
    """A violated property of one trial, to be explained.

    Attributes:
        property_id: The property.
        minimal: The search for a smaller case ended by itself; None if there was no search.
        repeats: The smallest case failed again when it was run once more.
        history: When it fails.
        likeness: What the failure resembles.
        native: Discrepancies of torch's native batch norm that explain it.
    """

    property_id: str
    trial: Trial
    subject: Subject
    minimal: bool | None = None
    repeats: bool = True
    history: History = ALWAYS
    likeness: Likeness = NOTHING_KNOWN
    native: tuple[Entry, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """The verdict of the property."""
        return next(verdict for verdict in self.trial.verdicts if verdict.property == self.property_id)


def explain(occurrence: Occurrence) -> tuple[Discrepancy, str]:
    """Return the greatest discrepancy and the whole message."""
    verdict = occurrence.verdict
    if verdict.outcome is not Outcome.VIOLATED:
        raise ValueError(
            f"Expected a violated property, but got {verdict.property}: {verdict.outcome.value}."
        )
    found = greatest(verdict)
    lines = [
        f"VIOLATED {verdict.property}: {PROPERTIES[verdict.property].violation}.",
        *_resembles(occurrence.likeness, weak=_is_weak(verdict)),
        "",
        _case_line(occurrence),
        *_let_then(occurrence, found),
        *_however(found, verdict.property),
        *_channel(occurrence.trial.case, found),
        *_others(verdict),
        *_endings(occurrence.trial, verdict.property),
        *_contrast(occurrence),
        *_grades(occurrence),
        *_native(occurrence.native),
        *_reproduce(occurrence),
    ]
    return found, "\n".join(lines)


def greatest(verdict: Verdict) -> Discrepancy:
    """Return the greatest discrepancy of a violated property."""
    return verdict.discrepancies[0] if verdict.discrepancies else Discrepancy(quantity=verdict.property)


def _case_line(occurrence: Occurrence) -> str:
    case = occurrence.trial.case
    size = {True: "minimal; ", False: "not minimised to the end; ", None: ""}[occurrence.minimal]
    return f"Case {case.id}   {case_words(case)} ({size}seed {case.seed})"


def _let_then(occurrence: Occurrence, found: Discrepancy) -> Iterator[str]:
    subject, property_id = occurrence.subject, occurrence.property_id
    where = f" on {ranks((found.rank,))}" if found.rank >= 0 else ""
    observed = f"observed = {subject.label}{where}, {subject.device}/{subject.backend}"
    judged = PROPERTIES[property_id]
    wanted = f"expected = {judged.expected}, float64; " if judged.is_numeric else ""
    yield f"Let      {wanted}{observed}"
    yield f"Then     {judged.must}"


def _however(found: Discrepancy, property_id: str) -> Iterator[str]:
    if found.index or (found.elements and not found.message):
        yield f"However, in {found.quantity}{_place(found)}:"
        bits = f"   ({found.observed_bits})" if found.observed_bits else ""
        yield f"{_INDENT}  observed    {shown(found.observed)}{bits}"
        # Of two ranks that disagree either may be right.
        label = "first rank" if property_id == "agreement" else "expected  "
        yield f"{_INDENT}  {label}  {shown(found.expected)}"
        if found.bound and not isinstance(found.observed, str) and not isinstance(found.expected, str):
            size = abs(found.observed - found.expected)
            times = f"{ratio(found.ratio)} x bound ({rough(found.bound)})"
            yield f"{_INDENT}  difference  {rough(size)} = {times}"
        elif found.message:
            yield f"{_INDENT}{found.message}"
        yield from _mismatched(found)
    else:
        text = (
            found.message
            or f"{found.quantity}: observed {shown(found.observed)}, expected {shown(found.expected)}"
        )
        yield f"However, {text}"


def _place(found: Discrepancy) -> str:
    place = f" at rank {found.rank}" if found.rank >= 0 else ""
    return f"{place}, index {found.index}" if found.index else place


def _mismatched(found: Discrepancy) -> Iterator[str]:
    if not found.elements:
        return
    share = f"{found.mismatched / found.elements:.1%}"
    on = found.mismatched_ranks
    where = "" if not on else f", all on {ranks(on)}" if len(on) == 1 else f", on {ranks(on)}"
    greatest = f" Greatest: {ratio(found.ratio)} x bound." if found.bound else ""
    least = "at least " if found.at_least else ""
    yield f"Mismatched elements: {least}{found.mismatched} / {found.elements} ({share}){where}.{greatest}"
    if found.pattern:
        yield f"Where    on rank {found.rank} the {found.pattern}; all others there are right."
    if found.relation:
        channel = f"in channel {found.index[1]} " if len(found.index) > 1 else ""
        yield f"Equals   {found.relation}, in all that are wrong {channel}on rank {found.rank}."


def _channel(case: Case, found: Discrepancy) -> Iterator[str]:
    """Yield the inputs of the failing channel, where they are few, and what it has that is drawn."""
    name, _, step = found.quantity.rpartition(".")
    if not (found.index and name in _OF_A_CHANNEL):
        return
    c = found.index[1] if name in ("output", "grad_input") else found.index[0]
    k = int(step) if step.isdecimal() else len(case.steps) - 1
    yield from _inputs(case, k, c, found.rank, cotangent=name.startswith("grad_"))
    if not (case.random_parameters or case.variance_exponent or any(one.rewritten for one in case.steps)):
        return
    weight, bias = affine(case, k)
    first = parameters(case)
    values = {"weight": weight[c]} if case.has_weight else {}
    values |= {"bias": bias[c]} if case.has_bias else {}
    if case.tracking:
        values |= {"running mean": first.running_mean[c], "running variance": first.running_var[c]}
    listed = ", ".join(f"{name} {shown(float(value))}" for name, value in values.items())
    when = " before the first step" if case.tracking else ""
    if values:
        yield f"Channel  {c} has {listed}{when}."


def _inputs(case: Case, k: int, c: int, rank: int, *, cotangent: bool) -> Iterator[str]:
    """Yield input (and cotangent) of channel `c` in step `k`, rank by rank of the group, if they are few."""
    if not 0 <= rank < case.world_size or case.wrong:
        return
    group = case.group_of(rank)
    if not 0 < case.at(k).total_of(group) <= _FEW_VALUES:
        return
    drawn = complete(case, group)
    where = f"channel {c}" if len(case.steps) == 1 else f"step {k}, channel {c}"
    for name, at in (("Input   ", 0), ("Cotangent", 1))[: 1 + cotangent]:
        arrays = (np.broadcast_to(drawn[one, k][at], drawn[one, k][0].shape)[:, c].ravel() for one in group)
        listed = (", ".join(shown(float(x)) for x in array) for array in arrays)
        yield f"{name} {where}: {' | '.join(one or '-' for one in listed)}"


def _others(verdict: Verdict) -> Iterator[str]:
    for other in verdict.discrepancies[1:4]:
        size = f": {ratio(other.ratio)} x bound" if other.bound else ""
        yield f"Also     {other.message or f'{other.quantity}{_place(other)}{size}'}"
    if len(verdict.discrepancies) > 4:
        yield f"Also     {count(len(verdict.discrepancies) - 4, 'more discrepancy').replace('ys', 'ies')}"


def _endings(trial: Trial, property_id: str) -> Iterator[str]:
    """Yield how every rank ended, where the collectives part, and the stacks."""
    observation = trial.observation
    if observation is None or all(rank.ending == "returned" for rank in observation.ranks):
        return
    yield "Ranks"
    for rank in observation.ranks:
        yield f"  rank {rank.rank}: {describe_ending(rank)}; {summary(rank.ledger)}"
    mismatch = first_mismatch(trial.case, observation)
    if mismatch and property_id != "collectives":
        yield f"Ledger   {mismatch}"
    yield from _stacks(observation.ranks)


def _stacks(observed: Sequence[RankObservation]) -> Iterator[str]:
    """Yield the stacks of ranks that did not return; of those in the same places, one rank's."""
    alike: dict[tuple[str, ...], list[tuple[int, list[str]]]] = {}
    for rank in observed:
        text = rank.stack or (rank.raised.traceback if rank.raised else "")
        if text and rank.ending not in ("returned", "stopped"):
            lines = _own_frames(text.rstrip().splitlines())
            places = tuple(line.strip() for line in lines if line.lstrip().startswith('File "'))
            alike.setdefault((rank.ending, *(places or lines)), []).append((rank.rank, lines))
    for stacks in alike.values():
        numbers, (lines, *_) = zip(*stacks, strict=True)
        yield f"Stack of {ranks(numbers)}"
        if len(lines) > _MAX_STACK_LINES:
            # faulthandler writes the innermost frame first, a traceback last: keep both ends.
            half = _MAX_STACK_LINES // 2
            lines = [*lines[:half], f"... {len(lines) - 2 * half} lines left out ...", *lines[-half:]]
        yield from (textwrap.indent(line, "  ") for line in lines)


def _own_frames(lines: list[str]) -> list[str]:
    """Return a stack without the frames of the machinery around the subject."""
    kept, keep = [], True
    for line in lines:
        if line.lstrip().startswith('File "'):
            keep = not any(part in line for part in _MACHINERY)
        elif not line.startswith("  "):
            keep = True
        if keep:
            kept.append(line)
    return kept


def _contrast(occurrence: Occurrence) -> Iterator[str]:
    """Yield with which changes the smallest case holds."""
    if holds := occurrence.history.holds:
        yield f"Holds    {', '.join(holds)}."


def _grades(occurrence: Occurrence) -> Iterator[str]:
    trial, required = occurrence.trial, occurrence.subject.promise.grade
    if (
        trial.satisfied
        and trial.satisfied not in (required, "none")
        and occurrence.property_id in trial.graded[required]
    ):
        # Of a case that was not minimised the looser bound may hold by luck: no advice.
        advice = f"; declare it with --grade {trial.satisfied} if the subject means no more"
        yield (
            f"Grade    this case breaks grade {required} and satisfies grade {trial.satisfied}"
            f"{'' if occurrence.minimal is False else advice}."
        )


def _native(entries: tuple[Entry, ...]) -> Iterator[str]:
    """Yield whose discrepancy it is, where torch's native batch norm has it, too."""
    for entry in entries:
        yield f"torch's native batch norm does this too, {entry.id}: {entry.reason}"
    if entries:
        yield 'A subject that calls it may declare factory.syncbn_verify = {"known": "torch-native"}.'


_WHEN = {
    "first": "It fails only the first time that it runs in a process: run again on the same ranks, it holds.",
    "again": "On new ranks it holds: it fails only when it has run before in the same processes.",
    "after": "On new ranks it holds: it fails only after {} in the same processes.",
    "unknown": "On new ranks it holds: the failure comes and goes, or is one of what ran before.",
}
"""When a smallest case fails, if not always."""
_SAID_ALREADY = ("", "ending", "other")
"""Stages that the violated property says by itself."""
_CONVENTIONS = {
    ("recompute_updates", "once"): (
        ": the buffers are updated once where torch.utils.checkpoint runs a forward again, or it is not run "
        "again, since the subject saves its tensors outside autograd (ctx.x = x)"
    )
}
"""What a convention means, where its name does not say."""


def _is_weak(verdict: Verdict) -> bool:
    """Whether numbers are beyond their bounds by so little that another order of rounding may be all."""
    greatest = max((found.ratio for found in verdict.discrepancies), default=0.0)
    return PROPERTIES[verdict.property].is_numeric and 1 < greatest < _WEAK


def _resembles(likeness: Likeness, *, weak: bool) -> Iterator[str]:
    """Yield what the failure resembles, in words that claim no more."""
    if likeness.convention:
        settings = " ".join(shlex.quote(f"--contract={key}={value}") for key, value in likeness.convention)
        means = "".join(_CONVENTIONS.get(one, "") for one in likeness.convention)
        yield f"A convention rather than a fault? All discrepancies vanish with {settings}{means}."
    elif likeness.form:
        setting = "--contract={}={}".format(*likeness.form)
        yield f"A convention rather than a fault? Of this property nothing is violated with {setting}."
    if likeness.stage[0] not in _SAID_ALREADY and not likeness.convention:
        yield f"First wrong is {likeness.stage[1]}."
    resembles = "Weakly resembles" if weak else "Resembles"
    for name, words in likeness.causes[:_MOST_NAMED]:
        yield f'{resembles} the fault "{name}" (a subject that {words}).'
    if more := likeness.names[_MOST_NAMED:]:
        yield f"Also predicted by {listing(more)}."
    if likeness.error:
        yield f"No cause was looked up: {likeness.error}."
    elif likeness.trials and not (likeness.causes or likeness.convention or likeness.form):
        yield "Resembles none of the known causes."


def _reproduce(occurrence: Occurrence) -> Iterator[str]:
    case, subject = occurrence.trial.case, occurrence.subject
    spec = shlex.quote(subject.spec)
    history = occurrence.history
    if words := _WHEN.get(history.when, ""):
        yield words.format(count(len(history.after), "other case"))
    elif not occurrence.repeats:
        yield "The smallest case did not fail again when it was repeated: the failure comes and goes."
    before = ["--times 2"] if history.when == "again" else []
    before += [f"--after {shlex.quote(encode(one).decode())}" for one in history.after]
    yield "Reproduce with"
    command = ("python -m verify replay", case.id, "--subject", spec, *subject.options, *before)
    yield "  " + " ".join(command)
    if before:
        return
    yield f"  pytest --subject {spec} --case {case.id}"
    text = encode(case).decode()
    if len(text) < MAX_CASE_CHARACTERS:
        yield f"  python -m verify replay {shlex.quote(text)} --subject {spec}"
