"""Subjects apart: faulty synchronized batch norms as people write them, which no cause was made for.

Their bases go through (C, n) and back, as most that are written by hand, and some of them return a view from
their autograd function, which autograd lets nobody edit. They say so, since both are asked for by default.
"""

from __future__ import annotations

from typing import Any, get_args

from properties.domain import Schedule

FORM: dict[str, Any] = {"contract": {"memory_format": "any"}}
VIEW: dict[str, Any] = {
    **FORM,
    "domain": {"schedule": [kind for kind in get_args(Schedule) if kind != "edited"]},
}
