"""The fault classes: 27 ways in which synchronized batch norms have gone wrong in the field, by number."""

from __future__ import annotations

CLASSES: dict[int, str] = {
    1: "means and variances merged without the ranks' counts",
    2: "backward normaliser wrong under uneven counts",
    3: "variance between ranks dropped",
    4: "no synchronisation, or the wrong group",
    5: "local terms only in grad_input",
    6: "gradient scaled by the number of ranks",
    7: "n / (n - 1): none, or of another n",
    8: "memory layout of input or cotangent",
    9: "empty rank",
    10: "empty rank and low precision",
    11: "globally empty batch",
    12: "cancellation in E[x^2] - E[x]^2",
    13: "counts or statistics in low precision",
    14: "collectives that depend on a rank's own state",
    15: "ranks diverge",
    16: "eps",
    17: "momentum and the number of batches tracked",
    18: "no running statistics",
    19: "swapped or permuted arguments or messages",
    20: "affine options and signs",
    21: "aliasing, in-place updates, accumulation",
    22: "tiny counts and shapes",
    23: "number of channels",
    24: "repeated or recomputed forward",
    25: "conversion and integration",
    26: "indices, counts and launch grids that a large batch outgrows",
    27: "what the caller does around a step: no gradients, two backwards, edits, other sizes and parameters",
}
OTHER = "what no class names"
"""What faults of class 0 are."""


def class_name(number: int) -> str:
    """Return the name of a class; 0 is for what no class names."""
    return CLASSES.get(number, OTHER)
