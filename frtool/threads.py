"""How torch's threads wait for each other."""

from __future__ import annotations

import os


def spin_briefly() -> None:
    """Let idle threads spin for a few milliseconds, from one operation to the next of a pass, and then sleep.

    Asleep, they cost every operation a wake-up; spinning longer, they take time from other programs. Works only before
    torch is imported; a GOMP_SPINCOUNT that is set already stays.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "100000")
