"""Wording: cases and numbers in the words of messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from properties.case import Case, Step

_DEFAULT = Case()


def listing(items: Iterable[object]) -> str:
    """Return `items` as "a", "a and b", "a, b and c"."""
    texts = [str(item) for item in items]
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)


def ranks(numbers: Sequence[int]) -> str:
    """Return "rank 1" or "ranks 0, 1 and 3"."""
    return f"rank {numbers[0]}" if len(numbers) == 1 else f"ranks {listing(numbers)}"


def count(number: int, noun: str) -> str:
    """Return "1 case" or "2 cases"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def shown(value: float | str) -> str:
    """Return a number with seven digits, as messages show it."""
    return value if isinstance(value, str) else f"{value:.7g}"


def rough(value: float | str) -> str:
    """Return a number with two digits."""
    return (
        value if isinstance(value, str) else f"{value:.1e}" if not 0.1 <= abs(value) < 1e4 else f"{value:.3g}"
    )


def ratio(value: float | str) -> str:
    """Return a ratio in digits that a reader can take in."""
    if isinstance(value, str):
        return value
    if 0.9 < value < 1.1:
        return f"{value:.4g}"
    return f"{value:.1f}" if 1 < value < 1e5 else f"{value:.2g}"


def case_words(case: Case) -> str:
    """Return `case` in words: ranks, samples, shape, dtypes, options, and whatever is not at its default."""
    parts = [
        f"{count(case.world_size, 'rank')} with {listing(case.batches)} {_samples(case)}",
        _shape(case),
        _dtypes(case),
        f"eps={case.eps:g}",
        *_options(case),
        _schedule(case),
    ]
    return ", ".join(part for part in parts if part)


def _samples(case: Case) -> str:
    return "sample" if case.batches == (1,) else "samples"


def _shape(case: Case) -> str:
    if len(case.spatial) > 1:
        return "shapes " + ", ".join(str(case.shape_of(rank)) for rank in range(case.world_size))
    return "shape (" + ", ".join(["N", str(case.channels), *map(str, case.spatial[0])]) + ")"


def _dtypes(case: Case) -> str:
    half = case.dtype in ("float16", "bfloat16")
    text = f"{case.dtype} accumulated in float32" if half else case.dtype
    return f"{text}, {case.param_dtype} parameters" if case.param_dtype != "float32" and half else text


def _options(case: Case) -> list[str]:
    words = {"both": "affine", "weight": "weight without bias", "none": "not affine"}
    parts = [words[case.affine]]
    if case.momentum != _DEFAULT.momentum:
        parts.append(f"momentum={case.momentum}")
    if not case.tracking:
        parts.append("no running buffers")
    if case.groups:
        parts.append(
            "process groups " + " ".join("{" + ",".join(map(str, group)) + "}" for group in case.groups)
        )
    if case.frozen:
        parts.append(f"frozen {listing(case.frozen)}")
    if case.input_grad and not all(case.input_grad):
        without = [rank for rank, wanted in enumerate(case.input_grad) if not wanted]
        parts.append(f"no input gradient on {ranks(without)}")
    for name, text in (("input_layout", "input"), ("cotangent_layout", "cotangent")):
        if getattr(case, name) != "contiguous":
            parts.append(f"{getattr(case, name)} {text}")
    for offset, text in ((case.input_offset, "input"), (case.cotangent_offset, "cotangent")):
        if offset:
            parts.append(f"{text} from element {offset} of its storage on")
    if case.variance_exponent:
        parts.append(f"running variance x 2^{case.variance_exponent}")
    if case.strided_buffers:
        parts.append("strided buffers")
    if case.values != "ordinary":
        parts.append(f"{case.values.replace('_', ' ')} values")
    if case.last_values:
        parts.append(f"{case.last_values.replace('_', ' ')} values in the last channel")
    if case.rank_offset:
        parts.append(f"rank means up to {case.rank_offset} x spread apart")
    if case.specials:
        parts.append(f"with {listing(special.kind for special in case.specials)}")
    if case.wrong:
        wrong = {"channels": "one channel too many", "dims": "one dimension only", "integer": "integer input"}
        parts.append(f"{wrong[case.wrong]}: to be refused")
    if case.probe:
        parts.append(f"probe {case.probe}")
    return parts


def _schedule(case: Case) -> str:
    return " then ".join(_step(step) for step in case.steps)


def _step(step: Step) -> str:
    text = "training" if step.mode == "train" else "evaluation"
    notes = []
    if step.recompute:
        notes.append("recomputed")
    if step.grad_mode != "enabled":
        notes.append("without gradients" if step.grad_mode == "no_grad" else "in inference mode")
    elif step.backward != "now":
        words = {"none": "no backward", "deferred": "late backward", "twice": "backward twice"}
        notes.append(words[step.backward])
    if step.batches:
        notes.append(f"with {listing(step.batches)} samples")
    if step.spatial:
        shapes = " and ".join("x".join(map(str, sizes)) for sizes in step.spatial)
        notes.append(f"spatial sizes {shapes}")
    flags = (
        (step.rewritten, "other parameters"),
        (step.frozen, "parameters frozen"),
        (step.edited, "output edited in place"),
    )
    notes += [text for flag, text in flags if flag]
    if step.accumulate:
        notes.append("accumulating")
    return f"{text} ({', '.join(notes)})" if notes else text
