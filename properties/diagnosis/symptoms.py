"""Symptoms: what a minimal case still needs in order to fail, as a hint where numbers tell nothing.

Minimising resets every field of a case that the failure can do without. What is left beyond the simplest case
is a condition of the failure, and some conditions are those of a known class of faults.
"""

from __future__ import annotations

from collections.abc import Sequence

from properties.diagnosis import conditions
from properties.diagnosis.symptom import Seen, Symptom
from properties.domain import Domain
from properties.judge.catalogue import NUMERIC
from properties.values.period import REPEATS_ABOVE, is_large

_NUMBERS = (*NUMERIC, "nonfinite")


_EVERY = (
    *_NUMBERS,
    "num_batches_tracked",
    "agreement",
    "dtype_and_layout",
    "ending",
    "refusal",
    "collectives",
)

SYMPTOMS: tuple[Symptom, ...] = (
    Symptom(
        id="conversion",
        words="does not convert a module as torch's contract has it",
        classes=(25,),
        properties=("conversion",),
        needs=conditions.always,
    ),
    Symptom(
        id="communicates-in-evaluation",
        words="communicates in evaluation",
        classes=(18, 14),
        properties=("eval_is_local",),
        needs=conditions.always,
    ),
    Symptom(
        id="modifies-what-is-not-its-own",
        words="writes into a tensor that is not its own",
        classes=(21,),
        properties=("purity",),
        needs=conditions.always,
    ),
    Symptom(
        id="replaces-tensors",
        words="puts other tensors in the place of its buffers or parameters",
        classes=(21,),
        properties=("identity",),
        needs=conditions.always,
    ),
    Symptom(
        id="wider-output",
        words="gives its output in a wider dtype than its input's",
        classes=(13, 25, 0),
        properties=("dtype_and_layout",),
        needs=conditions.wider_output,
    ),
    Symptom(
        id="other-memory-format",
        words="gives its output in another memory format than the input's",
        classes=(8,),
        properties=("dtype_and_layout",),
        needs=conditions.other_memory_format,
    ),
    Symptom(
        id="wrong-channels-accepted",
        words="does not refuse another number of channels",
        classes=(23,),
        properties=("refusal",),
        needs=lambda seen: seen.case.wrong == "channels",
    ),
    Symptom(
        id="single-value-accepted",
        words="does not refuse a batch of one value a channel",
        classes=(22,),
        properties=("refusal",),
        needs=lambda seen: conditions.single(seen) and not seen.case.wrong,
    ),
    Symptom(
        id="empty-rank-in-low-precision",
        words="is wrong where a rank has no values, in a half dtype alone",
        classes=(10,),
        properties=_EVERY,
        needs=lambda seen: (
            (conditions.empty_rank(seen) or conditions.empty_group(seen)) and conditions.half(seen)
        ),
        without={"dtype": "float32", "param_dtype": "float32"},
    ),
    Symptom(
        id="empty-batch",
        words="is wrong where no rank of a group has values",
        classes=(11,),
        properties=(*_NUMBERS, "num_batches_tracked", "agreement"),
        needs=lambda seen: conditions.empty_group(seen) and not conditions.empty_rank(seen),
    ),
    Symptom(
        id="empty-batch-fails",
        words="does not get through a batch without values",
        classes=(9, 11),
        properties=("ending", "refusal", "dtype_and_layout", "collectives"),
        needs=lambda seen: conditions.empty_group(seen) and not conditions.empty_rank(seen),
    ),
    Symptom(
        id="conditional-collective",
        words="takes part in a collective on some ranks only",
        classes=(14,),
        properties=_EVERY,
        needs=lambda seen: (
            bool(seen.case.ragged_grad or seen.case.frozen or seen.case.input_grad)
            and seen.case.world_size > 1
        ),
        beside=True,
    ),
    Symptom(
        id="empty-rank",
        words="is wrong only where a rank has no values",
        classes=(9,),
        properties=_EVERY,
        needs=conditions.empty_rank,
    ),
    Symptom(
        id="empty-input-fails",
        words="does not get through an input without values",
        classes=(9, 11),
        properties=("ending", "refusal", "dtype_and_layout", "collectives"),
        needs=lambda seen: conditions.empty_rank(seen) or conditions.empty_group(seen),
        alone=True,
    ),
    Symptom(
        id="mismatched-collectives",
        words="issues other collectives on one rank than on another",
        classes=(14,),
        properties=("ending", "collectives"),
        needs=lambda seen: conditions.mismatched(seen) or conditions.waits(seen),
    ),
    Symptom(
        id="diverging-ranks",
        words="holds other buffers on one rank than on another",
        classes=(15,),
        properties=("agreement",),
        needs=lambda seen: not {"running_mean", "running_var"} & set(seen.violated),
    ),
    Symptom(
        id="no-buffers",
        words="is wrong only without running buffers",
        classes=(18,),
        properties=_EVERY,
        needs=lambda seen: not seen.case.tracking,
        without={"tracking": True},
    ),
    Symptom(
        id="momentum-none",
        words="is wrong only with momentum None",
        classes=(17,),
        properties=_EVERY,
        needs=lambda seen: seen.case.momentum is None,
        without={"momentum": 0.1},
    ),
    Symptom(
        id="absent-or-frozen-parameters",
        words="is wrong only where a parameter is absent or frozen",
        classes=(20,),
        properties=_EVERY,
        needs=lambda seen: seen.case.affine != "both" or bool(seen.case.frozen),
        without={"affine": "both", "frozen": ()},
    ),
    Symptom(
        id="input-without-gradient",
        words="is wrong only where the input needs no gradient",
        classes=(20, 14),
        properties=_EVERY,
        needs=lambda seen: bool(seen.case.input_grad),
    ),
    Symptom(
        id="strided-buffers",
        words="is wrong only with non-contiguous buffers",
        classes=(21,),
        properties=_EVERY,
        needs=lambda seen: seen.case.strided_buffers,
    ),
    Symptom(
        id="recomputed-forward",
        words="is wrong only where the forward is recomputed in the backward",
        classes=(24,),
        properties=_EVERY,
        needs=lambda seen: any(step.recompute for step in seen.case.steps),
    ),
    Symptom(
        id="without-gradients",
        words="behaves otherwise where gradients are disabled",
        classes=(27,),
        properties=_EVERY,
        needs=lambda seen: any(step.grad_mode != "enabled" for step in seen.case.steps),
    ),
    Symptom(
        id="second-backward",
        words="does not get through a second backward of a retained graph",
        classes=(27,),
        properties=_EVERY,
        needs=lambda seen: any(step.backward == "twice" for step in seen.case.steps),
    ),
    Symptom(
        id="edited-output",
        words="needs its output, which the caller may change in place, in the backward",
        classes=(27,),
        properties=_EVERY,
        needs=lambda seen: any(step.edited for step in seen.case.steps),
    ),
    Symptom(
        id="rewritten-parameters",
        words="keeps something of the parameters that were there before",
        classes=(27,),
        properties=_EVERY,
        needs=lambda seen: any(step.rewritten for step in seen.case.steps),
    ),
    Symptom(
        id="frozen-for-a-step",
        words="is wrong only where parameters are frozen on the way",
        classes=(27,),
        properties=_EVERY,
        needs=lambda seen: any(step.frozen for step in seen.case.steps),
    ),
    Symptom(
        id="other-sizes",
        words="keeps something of an earlier step's sizes",
        classes=(27,),
        properties=_EVERY,
        needs=lambda seen: any(step.resized for step in seen.case.steps),
    ),
    Symptom(
        id="storage-offset",
        words="is wrong only where a tensor begins inside its storage",
        classes=(8,),
        properties=_EVERY,
        needs=lambda seen: bool(seen.case.input_offset or seen.case.cotangent_offset),
    ),
    Symptom(
        id="wide-buffers",
        words="does not evaluate with a running variance as it is stored",
        classes=(13,),
        properties=_EVERY,
        needs=lambda seen: bool(seen.case.variance_exponent),
    ),
    Symptom(
        id="two-forwards",
        words="mixes two forwards up",
        classes=(21,),
        properties=_EVERY,
        needs=lambda seen: any(step.backward == "deferred" for step in seen.case.steps),
    ),
    Symptom(
        id="accumulation",
        words="is wrong only where gradients accumulate",
        classes=(21,),
        properties=_EVERY,
        needs=lambda seen: any(step.accumulate for step in seen.case.steps),
    ),
    Symptom(
        id="layout",
        words="is wrong only in a memory layout that is not the contiguous one",
        classes=(8,),
        properties=_EVERY,
        needs=lambda seen: {seen.case.input_layout, seen.case.cotangent_layout} != {"contiguous"},
        without={"input_layout": "contiguous", "cotangent_layout": "contiguous"},
    ),
    Symptom(
        id="process-group",
        words="is wrong only with process groups",
        classes=(4,),
        properties=_EVERY,
        needs=lambda seen: len(seen.case.groups) > 1,
        without={"groups": ()},
    ),
    Symptom(
        id="many-channels",
        words="is wrong only for some numbers of channels",
        classes=(23,),
        properties=_EVERY,
        needs=lambda seen: seen.case.channels > 2 and not is_large(seen.case),
    ),
    Symptom(
        id="many-values",
        words="is wrong only with many values",
        classes=(13,),
        properties=_NUMBERS,
        needs=lambda seen: conditions.most_values(seen) > 255 and not is_large(seen.case),
    ),
    Symptom(
        id="large-blocks",
        words=f"mishandles more than {REPEATS_ABOVE:,} elements on a rank",
        classes=(26,),
        properties=_EVERY,
        needs=lambda seen: is_large(seen.case),
    ),
    Symptom(
        id="single-value-on-a-rank",
        words="is wrong only where a rank has one value a channel",
        classes=(22,),
        properties=("ending", "refusal", *_NUMBERS),
        needs=lambda seen: (
            conditions.one_value(seen) and (conditions.raised(seen) or conditions.not_a_number(seen))
        ),
    ),
    Symptom(
        id="eps-of-zero",
        words="is wrong only with an eps of zero",
        classes=(16,),
        properties=_NUMBERS,
        needs=lambda seen: seen.case.eps == 0,
        without={"eps": 1e-5},
    ),
    Symptom(
        id="variance-below-eps",
        words="loses a variance that is small against eps",
        classes=(16,),
        properties=("forward", "running_var", "grad_input", "grad_weight"),
        needs=lambda seen: "tiny_spread" in (seen.case.values, seen.case.last_values),
        without={"values": "ordinary", "last_values": ""},
    ),
    Symptom(
        id="repeated-forward",
        words="is right in a first forward and wrong in a later one",
        classes=(24, 21),
        properties=_EVERY,
        needs=lambda seen: len(seen.case.steps) > 1 + conditions.evaluates(seen),
        alone=True,
    ),
    Symptom(
        id="unrepeatable",
        words="gives other bits the second time",
        classes=(24, 15),
        properties=("repeatable",),
        needs=conditions.always,
    ),
)
CLASSES = {symptom.id: symptom.classes for symptom in SYMPTOMS}
WORDS = {symptom.id: symptom.words for symptom in SYMPTOMS}
BESIDE = {symptom.id for symptom in SYMPTOMS if symptom.beside}


def symptoms(
    evidence: Sequence[Seen], domain: Domain, further: Sequence[Seen] = ()
) -> dict[str, tuple[str, ...]]:
    """Return the symptoms of each violated property: what all its violating trials show.

    What the subject's `domain` forces on every case is none. Where minimising came to its end, or every trial
    shows a symptom that is `telling`, it is one; what is not telling must be shown by `further` trials, too.
    """
    found: dict[str, tuple[str, ...]] = {}
    for name in dict.fromkeys(name for one in evidence for name in one.violated):
        violating = [one for one in evidence if name in one.violated]
        minimal = any(one.minimal for one in violating)
        shown: list[str] = []
        for symptom in SYMPTOMS:
            telling = symptom.id in _TELLING
            applies = name in symptom.properties and not (symptom.alone and shown)
            shows = applies and (minimal or telling) and all(map(symptom.needs, violating))
            others = () if telling else (one for one in further if name in one.violated)
            shows = shows and all(map(symptom.needs, others))
            if shows and not all(symptom.forced(one.case, domain) for one in violating):
                shown.append(symptom.id)
        if shown:
            found[name] = tuple(shown)
    return found


_TELLING = {
    *("conversion", "communicates-in-evaluation", "modifies-what-is-not-its-own", "wrong-channels-accepted"),
    *("replaces-tensors", "other-memory-format", "wider-output"),
    *("single-value-accepted", "mismatched-collectives", "diverging-ranks", "unrepeatable"),
}
"""What a single trial tells, minimal or not."""
