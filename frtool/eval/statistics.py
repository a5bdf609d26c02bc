"""Intervals for shares and for their differences."""

from __future__ import annotations

import math
from collections.abc import Sequence

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


def paired_difference(differences: Sequence[float], z: float = Z95) -> tuple[float, float, float]:
    """Mean of paired differences, each in [-1, 1], and its adjusted Wald interval, which two more pairs, one of +1 and
    one of -1, keep from a width of 0. The interval of no pairs is (-1, 1).

    Source: D. G. Bonett and R. M. Price 2012, J. Educ. Behav. Stat. 37, 479-488, for pairs of right or wrong.
    """
    count = len(differences)
    total = sum(differences)
    centre = total / (count + 2)
    variance = (sum(value * value for value in differences) + 2) / (count + 2) - centre * centre
    half = z * math.sqrt(variance / (count + 2))
    if not count:
        return 0.0, -1.0, 1.0
    return total / count, max(centre - half, -1.0), min(centre + half, 1.0)
