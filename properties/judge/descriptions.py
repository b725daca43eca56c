"""Descriptions: what each property says, in the words of a page for users; data, light to import.

`verify run --help` lists them, and `python -m verify properties --table docs/properties.md` makes a page.
"""

from __future__ import annotations

from dataclasses import dataclass

_BOUNDED = (
    "An element whose bound is infinite, since an intermediate may overflow or a radicand may vanish, is "
    "undecided. "
)
_COMPLETE = "Groups in which a rank did not return or had to refuse: `ending` and `refusal` speak of those."


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What users read of a property.

    Attributes:
        holds: What must hold, in one sentence.
        quantities: What it looks at, by the names that reports use.
        not_judged: When it is not judged, or an element of it is undecided.
    """

    holds: str
    quantities: str
    not_judged: str


DESCRIPTIONS: dict[str, Description] = {
    "forward": Description(
        holds="Every element of every output is within its bound of the reference.",
        quantities="`output.STEP`",
        not_judged=_BOUNDED + _COMPLETE,
    ),
    "running_mean": Description(
        holds="The running mean is within its bound of the reference after every step.",
        quantities="`running_mean.STEP`, `running_mean.end`",
        not_judged="Without running buffers. " + _BOUNDED + _COMPLETE,
    ),
    "running_var": Description(
        holds="The running variance is within its bound of the reference after every step.",
        quantities="`running_var.STEP`, `running_var.end`",
        not_judged="Without running buffers. " + _BOUNDED + _COMPLETE,
    ),
    "num_batches_tracked": Description(
        holds="The count of training batches is exact after every step.",
        quantities="`num_batches_tracked.STEP`, `num_batches_tracked.end`",
        not_judged="Without running buffers. " + _COMPLETE,
    ),
    "grad_input": Description(
        holds="Every element of the gradient of every input is within its bound of the reference.",
        quantities="`grad_input.STEP`",
        not_judged="Where the input requires no gradient, or the step has no backward. "
        + _BOUNDED
        + _COMPLETE,
    ),
    "grad_weight": Description(
        holds="The gradient of the weight is within its bound of the reference.",
        quantities="`grad_weight.STEP`",
        not_judged="Without a weight, or with a frozen one. " + _BOUNDED + _COMPLETE,
    ),
    "grad_bias": Description(
        holds="The gradient of the bias is within its bound of the reference.",
        quantities="`grad_bias.STEP`",
        not_judged="Without a bias, or with a frozen one. " + _BOUNDED + _COMPLETE,
    ),
    "agreement": Description(
        holds="The running buffers are the same on all ranks of a group, bit for bit.",
        quantities="`running_mean`, `running_var` and `num_batches_tracked` of every step",
        not_judged="Without running buffers, and in a group of one. " + _COMPLETE,
    ),
    "dtype_and_layout": Description(
        holds="Every tensor has the dtype and shape that it must have, and every output its own memory, and "
        "requires a gradient exactly if the input, weight or bias does.",
        quantities="every expected tensor",
        not_judged="The memory format. " + _COMPLETE,
    ),
    "purity": Description(
        holds="Input, cotangent, weight, bias and earlier outputs are left as they were.",
        quantities="the storages of these tensors",
        not_judged="The input where the contract says `inplace`. " + _COMPLETE,
    ),
    "eval_is_local": Description(
        holds="No rank communicates in evaluation mode, neither forward nor backward.",
        quantities="the collectives of evaluations",
        not_judged="Without a step in evaluation mode. " + _COMPLETE,
    ),
    "collectives": Description(
        holds="The ranks of a group issue the same collectives in the same order.",
        quantities="operation, reduction, dtypes, and sizes where every rank contributes alike",
        not_judged="Send and receive. " + _COMPLETE,
    ),
    "nonfinite": Description(
        holds="A non-finite input makes its channel non-finite on every rank of the group.",
        quantities="elements of outputs, buffers and gradients that must not be finite",
        not_judged="Without a non-finite input. Which of NaN and infinity it is. " + _COMPLETE,
    ),
    "refusal": Description(
        holds="An input that must be refused is refused in its forward, alike on every rank of the group.",
        quantities="the type of the exception on each rank",
        not_judged="Where nothing must be refused.",
    ),
    "ending": Description(
        holds="On a case that is not to be refused, no rank hangs, dies or raises.",
        quantities="how each rank ended",
        not_judged="A rank that stopped because a peer had failed.",
    ),
    "repeatable": Description(
        holds="The same case run twice gives the same bits.",
        quantities="every tensor",
        not_judged="Cases that do not ask for a second run, and where the contract says `deterministic=no`.",
    ),
    "scaling": Description(
        holds="Scaling cotangent and parameters by powers of two scales outputs and gradients exactly.",
        quantities="outputs, gradients and buffers of a second, scaled run",
        not_judged="Cases that do not ask for it, and where the contract says `deterministic=no` or "
        "`scaling=no`. Elements near the smallest normal or the largest number are undecided.",
    ),
    "conversion": Description(
        holds="Conversion changes nothing of a tree of modules but what normalises in it.",
        quantities="parameters, options, mode, hooks, attributes, buffers and names of every module",
        not_judged="Without a `convert_sync_batchnorm` of the subject's own; cases that do not ask for it.",
    ),
}


def listing() -> str:
    """Return the ids, each with what must hold, as lines of a help text."""
    width = max(map(len, DESCRIPTIONS))
    return "\n".join(f"  {name:<{width}}  {one.holds}" for name, one in DESCRIPTIONS.items())


def page() -> str:
    """Return the page of properties as Markdown."""
    parts = [_HEAD]
    for name, one in DESCRIPTIONS.items():
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
