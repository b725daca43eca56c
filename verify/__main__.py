"""The program `python -m verify`.

A `verify.py` in the current folder is run in its place; `syncbn-verify` always works.
"""

from __future__ import annotations

import sys

from verify.entry import main

if __name__ == "__main__":
    sys.exit(main())
