"""Bugs as kernels have them, planted into the worked examples: the text of a line, and what it becomes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass(frozen=True, slots=True)
class Planted:
    """One bug in one example.

    Attributes:
        example: Name of the file under `examples/`.
        id: What the bug is.
        stage: What is wrong first (`properties.diagnosis.stages`).
        edits: Pairs of a text that the example has, and what takes its place.
    """

    example: str
    id: str
    stage: str
    edits: tuple[tuple[str, str], ...]

    @property
    def source(self) -> str:
        """The example with the bug.

        Raises:
            ValueError: The example does not have the text once.
        """
        text = (EXAMPLES / self.example).read_text("utf-8")
        for old, new in self.edits:
            if text.count(old) != 1:
                raise ValueError(f"Expected {old!r} once in {self.example}, but got {text.count(old)}.")
            text = text.replace(old, new)
        return text.replace('"cpp_syncbn"', f'"cpp_{self.id.replace("-", "_")}"')  # an extension of its own


SQUARES = """        for (int64_t i = 0; i < v.samples; i++)
            for (int64_t k = 0; k < v.length; k++) {
                const double d = v.data[v.row(i, c) + k] - mu;
                square += d * d;
            }
"""
BESSEL = "var * (count / (count - 1))"
INVSTD = "invstd = 1.0 / (var + self.eps).sqrt()"
HALF_INVSTD = "invstd = (1.0 / (var + self.eps).sqrt()).half().float()"


def _cpp(name: str, stage: str, *edits: tuple[str, str]) -> Planted:
    return Planted("cpp_syncbn.py", name, stage, edits)


def _triton(name: str, stage: str, *edits: tuple[str, str]) -> Planted:
    return Planted("triton_syncbn.py", name, stage, edits)


PLANTED = (
    _cpp(
        "missing-mask",
        "statistics",
        (
            SQUARES,
            SQUARES + "        square += ((8 - count % 8) % 8) * mu * mu;  // lanes of the last vector\n",
        ),
    ),
    _cpp("mean-not-subtracted", "backward-sums", ("((v.data[at] - mu) * r)", "(v.data[at] * r)")),
    _cpp(
        "tail-dropped",
        "statistics",
        (
            "            for (int64_t k = 0; k < v.length; k++)\n                sum +=",
            "            for (int64_t k = 0; k < v.length / 4 * 4; k++)\n                sum +=",
        ),
    ),
    _cpp(
        "wild-write",
        "backward-elements",
        ("out[at] = (dy", "out[k + 1 < v.length ? at : (at + 1) % x.numel()] = (dy"),
        ("auto dx = torch::empty_like(x);", "auto dx = torch::zeros_like(x);"),
    ),
    _cpp("no-bessel", "buffers", (BESSEL, "var")),
    _cpp(
        "invstd-in-half",
        "normalise",
        (INVSTD, HALF_INVSTD),
    ),
    _cpp(
        "sample-7-dropped",
        "statistics",
        (
            "for (int64_t k = 0; k < v.length; k++)\n                sum += v",
            "for (int64_t k = 0; k < v.length; k++)\n                if (i != 7) sum += v",
        ),
    ),
    _triton(
        "missing-mask",
        "statistics",
        (
            "d = tl.where(at < length, tl.load(x + c * length + at, mask=at < length, other=0.0) - mu, 0.0)\n"
            "        total += tl.sum(d)\n        square",
            "d = tl.load(x + c * length + at, mask=at < length, other=0.0) - mu\n"
            "        total += tl.sum(tl.where(at < length, d, 0.0))\n        square",
        ),
    ),
    _triton(
        "mean-not-subtracted",
        "backward-sums",
        (
            "mask=inside, other=0.0) - mu, 0.0)\n        total += tl.sum(dy)",
            "mask=inside, other=0.0), 0.0)\n        total += tl.sum(dy)",
        ),
    ),
    _triton(
        "tail-dropped",
        "statistics",
        (
            "total, square = 0.0, 0.0\n    for start in range(0, length, BLOCK):\n"
            "        at = start + tl.arange(0, BLOCK)\n        d = tl.where(at < length,",
            "total, square = 0.0, 0.0\n    for start in range(0, length, BLOCK):\n"
            "        at = start + tl.arange(0, BLOCK)\n        d = tl.where(at < length // 4 * 4,",
        ),
    ),
    _triton(
        "wild-write",
        "backward-elements",
        (
            "tl.store(dx + c * length + at, (dy - mg",
            "tl.store(dx + (c * length + at + (at == length - 1)) % (length * tl.num_programs(0)), (dy - mg",
        ),
        ("dx = torch.empty_like(data)", "dx = torch.zeros_like(data)"),
    ),
    _triton("no-bessel", "buffers", (BESSEL, "var")),
    _triton(
        "invstd-in-half",
        "normalise",
        (INVSTD, HALF_INVSTD),
    ),
    _triton(
        "sample-7-dropped",
        "statistics",
        (
            "        total += tl.sum(d)\n        square",
            "        total += tl.sum(tl.where(at == 7, 0.0, d))\n        square",
        ),
    ),
)
