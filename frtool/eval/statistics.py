"""Intervals for shares."""

from __future__ import annotations

import math

Z95 = 1.959963984540054
"""0.975 quantile of the standard normal distribution."""


def wilson(successes: int, trials: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval for a share, both ends in [0, 1]; (0, 1) for no trials.

    Source: E. B. Wilson 1927, J. Am. Stat. Assoc. 22, 209-212. Raises ValueError unless 0 <= successes <= trials.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials")
    if not trials:
        return 0.0, 1.0
    share = successes / trials
    spread = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / spread
    half = z / spread * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    # Rounding may miss the ends that are exact.
    low = 0.0 if successes == 0 else max(centre - half, 0.0)
    high = 1.0 if successes == trials else min(centre + half, 1.0)
    return low, high
