"""Slips in Chan's merge of two parts, which is done one part after the other or in rounds of pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from properties.diagnosis.plain_batchnorm import Moments, Step, merged
from properties.diagnosis.slips.slip import Slip, slip


def _chan(distance: str, one: Moments, other: Moments) -> Moments:
    """Return Chan's merge of two parts with another weight of their distance, or another distance."""
    if not one.n or not other.n:
        return one if one.n else other
    n, m = one.n, other.n
    total, away = n + m, other.mean - one.mean
    moved = one.mean + away * m / total
    if distance == "old-count":
        moved = one.mean + away * m / n
    square = {
        "moved": (other.mean - moved) ** 2 * n * m / total,
        "unweighted": away**2,
        "by-part": away**2 * m,
        "by-both": away**2 * n * m,
        "old-count": away**2 * n * m / total,
        "halved": away**2 * n * m / (2 * total),
    }[distance]
    return Moments(total, moved, (n * one.var + m * other.var + square) / total)


def _in_turn(distance: str) -> Callable[..., Moments]:
    """Return Chan's merge, one part after the other."""

    def change(step: Step, slot: int, parts: Sequence[Moments]) -> Moments:
        del step, slot
        whole = parts[0]
        for part in parts[1:]:
            whole = _chan(distance, whole, part)
        return whole

    return change


def _in_rounds(distance: str) -> Callable[..., Moments]:
    """Return Chan's merge in rounds of pairs; who has no partner waits."""

    def change(step: Step, slot: int, parts: Sequence[Moments]) -> Moments:
        del step, slot
        left = list(parts)
        while len(left) > 1:
            pairs = [left[i : i + 2] for i in range(0, len(left), 2)]
            left = [_chan(distance, *pair) if len(pair) > 1 else pair[0] for pair in pairs]
        return left[0]

    return change


def _own_first(step: Step, slot: int, parts: Sequence[Moments]) -> Moments:
    return merged(step, slot, [parts[slot], *parts[1:]])


def _read_as_halves(step: Step, slot: int, parts: Sequence[Moments]) -> Moments:
    """Return the merge of parts whose mean and squares were sent channel by channel, and are read in turn."""
    read = []
    for part in parts:
        sent = np.stack([part.mean, part.var * part.n], axis=1).ravel()
        mean, squares = np.split(sent, 2)
        read.append(Moments(part.n, mean, squares / max(part.n, 1.0)))
    return merged(step, slot, read)


PAIRS: tuple[Slip, ...] = (
    slip(
        "own-part-for-the-first",
        "merges the rank's own part in place of the first rank's",
        (19, 4, 15),
        "forward",
        merged=_own_first,
    ),
    slip(
        "pairs-read-as-halves",
        "reads a message of mean and squares of each channel as one of all means and then all squares",
        (19, 23),
        "forward",
        merged=_read_as_halves,
    ),
    *(
        slip(f"{id}{end}", words, classes, "forward", merged=merge(distance))
        for id, words, classes, distance in (
            (
                "mean-moved-first",
                "moves the mean before its distance is squared in a merge of two parts",
                (3, 0, 21),
                "moved",
            ),
            (
                "distance-not-weighted",
                "adds the squared distance of two parts' means without n m / (n + m)",
                (3, 1),
                "unweighted",
            ),
            (
                "distance-by-one-count",
                "weighs the squared distance of two parts' means by one of their counts",
                (3, 1),
                "by-part",
            ),
            (
                "distance-not-divided",
                "weighs the squared distance of two parts' means by n m, not divided by n + m",
                (3, 1),
                "by-both",
            ),
            (
                "mean-by-old-count",
                "divides a part's share of the mean by the count before it, in a merge of two parts",
                (1,),
                "old-count",
            ),
            ("distance-halved", "halves the squared distance of two parts' means", (3, 1), "halved"),
        )
        for end, merge in (("", _in_turn), ("-in-rounds", _in_rounds))
    ),
)
