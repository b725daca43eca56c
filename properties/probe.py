"""Probes: what a case may ask for beside its run, derived from the case alone.

`repeatable` runs the same case again. `scaling` runs it with the cotangent times 2^3 and weight and bias
times 2^2, which a right subject answers with outputs and gradients scaled bit for bit: a power of two
commutes with every rounding as long as nothing comes near under- or overflow. Cases whose intermediate
results do come near it by design (subnormal and near-overflow values, replaced elements) have no scaled
second run.

`conversion` has no second run: the subject converts a tree of modules that the case's seed says, below
`TREE_ITEMS` a tree of a single item.
"""

from __future__ import annotations

import msgspec

from properties.case import Case

COTANGENT_SHIFT = 3
AFFINE_SHIFT = 2
TREE_ITEMS = 16
_EXTREME = ("subnormal", "near_overflow")


def second(case: Case) -> Case | None:
    """Return the case that the probe of `case` runs next, or None if there is nothing to run."""
    if case.wrong or case.ragged_grad:
        return None
    if case.probe == "repeatable":
        return case
    if case.probe == "scaling" and not _extreme(case) and not case.specials:
        cotangent = case.cotangent_exponent + COTANGENT_SHIFT
        affine = case.affine_exponent + AFFINE_SHIFT
        if max(cotangent, affine) > 16 or min(case.cotangent_exponent, case.affine_exponent) < -4:
            return None
        return msgspec.structs.replace(case, cotangent_exponent=cotangent, affine_exponent=affine)
    return None


def shift_of(quantity: str, case: Case) -> int:
    """Return the power of two by which `quantity` (`output`, `grad_input`, ...) of the scaled run differs."""
    affine = AFFINE_SHIFT if case.has_weight else 0
    return {
        "output": affine,
        "grad_input": COTANGENT_SHIFT + affine,
        "grad_weight": COTANGENT_SHIFT,
        "grad_bias": COTANGENT_SHIFT,
    }.get(quantity, 0)


def _extreme(case: Case) -> bool:
    return case.values in _EXTREME or case.last_values in _EXTREME
