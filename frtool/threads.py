"""How torch's threads wait for each other."""

from __future__ import annotations

import os


def spin_briefly() -> None:
    """Keep idle threads from spinning for long: they stall where other programs use the cores too.

    Works only before torch is imported; a GOMP_SPINCOUNT that is set already stays.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
