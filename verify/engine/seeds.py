"""A seed: a number of 64 bits from which a campaign, a round or a shard draws; each has one of its own."""

from __future__ import annotations

import hashlib


def derive(seed: int, *path: int) -> int:
    """Return a 64-bit seed that depends on `seed` and `path`, different for each path."""
    text = "/".join(str(part) for part in (seed, *path))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
