"""Slips in the sums of the backward, and in their reduction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from properties.diagnosis.plain_batchnorm import (
    Floats,
    Step,
    Sums,
    added,
    summed,
)
from properties.diagnosis.slips.left_out_slips import (
    SAMPLES,
    VECTORS,
    Kept,
    without_ends_of_rows,
    without_sample,
    without_tail,
)
from properties.diagnosis.slips.slip import Slip, by_block, by_half, slip
from properties.values.elements import round_to


def _backward(id: str, words: str, classes: tuple[int, ...], **change: Any) -> Slip:
    return slip(id, words, classes, "backward", **change)


def sums_of(kept: Kept) -> Callable[[Step, int, Floats, Floats], Sums]:
    """Return sums over what is not left out."""

    def sums(step: Step, slot: int, xhat: Floats, scale: Floats) -> Sums:
        del scale
        g, gx = kept(step.g[slot]), kept(step.g[slot] * xhat)
        return Sums(g.sum(axis=1), gx.sum(axis=1))

    return sums


def _not_centred(step: Step, slot: int, xhat: Floats, scale: Floats) -> Sums:
    found = summed(step.g[slot], xhat)
    return found._replace(projection=(step.g[slot] * step.x[slot]).sum(axis=(0, 2)) * scale)


def _half_sums(step: Step, slot: int, xhat: Floats, scale: Floats) -> Sums:
    del scale
    found = summed(step.g[slot], xhat)
    return Sums(*(round_to(each, step.half) for each in found))


def _reduced(change: Callable[[Step, int, Sequence[Sums]], Sums]) -> dict[str, Any]:
    return {"reduced": change}


def _times(factor: Callable[[int, int], float]) -> dict[str, Any]:
    """Return a reduction in which each slot counts so many times, of all ranks."""

    def reduced(step: Step, slot: int, parts: Sequence[Sums]) -> Sums:
        del step, slot
        return added(
            [Sums(*(factor(index, len(parts)) * each for each in part)) for index, part in enumerate(parts)]
        )

    return _reduced(reduced)


def _extreme(choose: Any) -> dict[str, Any]:
    def reduced(step: Step, slot: int, parts: Sequence[Sums]) -> Sums:
        del step, slot
        return Sums(*(choose(each, axis=0) for each in zip(*parts, strict=True)))

    return _reduced(reduced)


def _one_of_own(name: str) -> dict[str, Any]:
    def reduced(step: Step, slot: int, parts: Sequence[Sums]) -> Sums:
        del step
        return added(parts)._replace(**{name: getattr(parts[slot], name)})

    return _reduced(reduced)


SUMS: tuple[Slip, ...] = (
    *by_block(
        "sums-without-tail",
        "leaves the last values of a rank out of the backward sums, where they do not fill a block{}",
        (26, 22, 0),
        "backward",
        lambda block: {"sums": sums_of(without_tail(block, alone=False))},
    ),
    *by_block(
        "sums-without-tail-alone",
        "leaves the last values of a rank out of the backward sums, where they do not fill a block{}, and "
        "all of fewer",
        (26, 22, 0),
        "backward",
        lambda block: {"sums": sums_of(without_tail(block, alone=True))},
    ),
    *by_block(
        "sums-without-ends-of-rows",
        "leaves the last positions of each sample out of the backward sums, where they do not fill a "
        "vector{}",
        (26, 22, 0, 5),
        "backward",
        lambda block: {"sums": sums_of(without_ends_of_rows(block))},
        VECTORS,
    ),
    *(
        _backward(
            f"sums-without-{name}-sample",
            f"leaves the {name} sample of a rank out of the backward sums",
            (26, 22, 0, 5),
            sums=sums_of(without_sample(which)),
        )
        for name, which in SAMPLES.items()
    ),
    _backward(
        "sums-exchanged",
        "takes the reduced sums of g and of g xhat for each other",
        (19,),
        **_reduced(lambda step, slot, parts: Sums(*added(parts)[::-1])),
    ),
    _backward(
        "sums-averaged",
        "averages the backward sums over the ranks in place of adding them up",
        (6, 2),
        **_times(lambda index, ranks: 1.0 / ranks),
    ),
    _backward(
        "sums-times-ranks",
        "multiplies the backward sums by the number of ranks",
        (6, 2),
        **_times(lambda index, ranks: float(ranks)),
    ),
    _backward(
        "own-sums-over-all",
        "divides the rank's own backward sums by the count of all: they are not reduced",
        (5, 4),
        **_reduced(lambda step, slot, parts: parts[slot]),
    ),
    _backward(
        "own-cotangent-sum",
        "reduces the sum of g xhat and not the sum of g",
        (5, 4),
        **_one_of_own("cotangent"),
    ),
    _backward(
        "own-projection-sum",
        "reduces the sum of g and not the sum of g xhat",
        (5, 4),
        **_one_of_own("projection"),
    ),
    _backward(
        "greatest-of-backward-sums",
        "takes the greatest of the ranks' backward sums for their sum",
        (0, 5),
        **_extreme(np.max),
    ),
    _backward(
        "least-of-backward-sums",
        "takes the least of the ranks' backward sums for their sum",
        (0, 5),
        **_extreme(np.min),
    ),
    _backward(
        "first-backward-sums-twice",
        "adds up the first rank's backward sums twice",
        (0, 1, 2),
        **_times(lambda index, ranks: 2.0 if index == 0 else 1.0),
    ),
    _backward(
        "last-backward-sums-twice",
        "adds up the last rank's backward sums twice",
        (0, 1, 2),
        **_times(lambda index, ranks: 2.0 if index == ranks - 1 else 1.0),
    ),
    _backward(
        "first-backward-sums-left-out",
        "leaves the first rank's backward sums out",
        (5, 4),
        **_times(lambda index, ranks: 0.0 if index == 0 and ranks > 1 else 1.0),
    ),
    _backward(
        "last-backward-sums-left-out",
        "leaves the last rank's backward sums out",
        (5, 4),
        **_times(lambda index, ranks: 0.0 if index == ranks - 1 and ranks > 1 else 1.0),
    ),
    _backward(
        "projection-not-centred",
        "sums g x in place of g (x - mean): the mean is not subtracted",
        (0, 19, 12),
        sums=_not_centred,
    ),
    *by_half("backward-sums-in-half", "rounds the backward sums to {}", (13,), "backward", sums=_half_sums),
)
