"""Closeness: what `torch.testing.assert_close` accepts by default, in numpy.

    |actual - expected| <= atol + rtol |expected|

with the tolerances that torch chooses for a dtype. A measure for comparison; nothing is judged by it.

References:
    torch.testing.assert_close, table of default tolerances.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

TOLERANCES: dict[str, tuple[float, float]] = {
    "float64": (1e-7, 1e-7),
    "float32": (1.3e-6, 1e-5),
    "float16": (1e-3, 1e-5),
    "bfloat16": (1.6e-2, 1e-5),
}
"""Relative and absolute tolerance by dtype."""


def excess(actual: Floats, expected: Floats, *, dtype: str) -> Floats:
    """Return |actual - expected| / (atol + rtol |expected|) of finite values; above 1 is not close."""
    rtol, atol = TOLERANCES[dtype]
    ratio: Floats = np.abs(actual - expected) / (atol + rtol * np.abs(expected))
    return ratio
