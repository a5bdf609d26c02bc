"""Each algorithm beside best-of-n at the tokens that it spent."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .control import RANDOM_POLICY
from .plan import BASELINE, Cell
from .record import Result
from .statistics import paired_difference
from .summary import Summary


@dataclass(frozen=True, slots=True)
class Matched:
    """One cell and best-of-n at as many tokens, policy and scorer, a problem.

    Best-of-n's accuracy there is interpolated between its two nearest budgets, linearly in the logarithm of the
    tokens; all figures of it are None where the cell spends less than its smallest budget or more than its largest.
    """

    task: str
    algorithm: str
    budget: int | None
    tokens: float
    accuracy: float
    best_of_n: float | None = None
    low: float | None = None
    """Of the two budgets' Wilson intervals, interpolated too: as wide as if both erred in the same direction."""
    high: float | None = None
    difference: float | None = None
    """Accuracy less best-of-n's, over the problems that both were given."""
    difference_low: float | None = None
    """Of its 95 % interval, paired by problem: see `statistics.paired_difference`."""
    difference_high: float | None = None

    @property
    def verdict(self) -> str:
        """'loses' or 'better' where the interval of the difference leaves out 0, 'outside' where there is none."""
        if self.difference_low is None or self.difference_high is None:
            return "outside"
        return "loses" if self.difference_high < 0 else "better" if self.difference_low > 0 else ""


def match_tokens(rows: Sequence[Summary], results: Iterable[Result]) -> list[Matched]:
    """One entry for each cell but best-of-n's own and the control's, for tasks where best-of-n has several budgets."""
    curves: dict[str, list[Summary]] = {}
    for row in rows:
        if row.algorithm == BASELINE and row.tokens > 0:
            curves.setdefault(row.task, []).append(row)
    shares = _shares(results)
    matched = []
    for row in rows:
        curve = sorted(curves.get(row.task, []), key=lambda point: point.tokens)
        if len(curve) > 1 and row.algorithm not in (BASELINE, RANDOM_POLICY):
            matched.append(_match(row, curve, shares))
    return matched


def _match(row: Summary, curve: list[Summary], shares: dict[Cell, dict[str, float]]) -> Matched:
    below = [point for point in curve if point.tokens <= row.tokens]
    above = [point for point in curve if point.tokens >= row.tokens]
    if not below or not above:
        return Matched(row.task, row.algorithm, row.budget, row.tokens, row.accuracy)
    first, last = below[-1], above[0]
    part = 0.0
    if last.tokens > first.tokens:
        part = math.log(row.tokens / first.tokens) / math.log(last.tokens / first.tokens)

    def between(one: float, other: float) -> float:
        return one + part * (other - one)

    own, left, right = (shares[point.cell] for point in (row, first, last))
    common = [name for name in own if name in left and name in right]
    difference, low, high = paired_difference([own[name] - between(left[name], right[name]) for name in common])
    return Matched(
        task=row.task,
        algorithm=row.algorithm,
        budget=row.budget,
        tokens=row.tokens,
        accuracy=row.accuracy,
        best_of_n=between(first.accuracy, last.accuracy),
        low=between(first.low, last.low),
        high=between(first.high, last.high),
        difference=difference,
        difference_low=low,
        difference_high=high,
    )


def _shares(results: Iterable[Result]) -> dict[Cell, dict[str, float]]:
    """Of each cell, by problem, the share of its seeds that were right."""
    found: dict[Cell, dict[str, dict[int, bool]]] = {}
    for result in results:
        found.setdefault(result.cell, {}).setdefault(result.id, {})[result.seed] = result.correct
    return {
        cell: {name: sum(seeds.values()) / len(seeds) for name, seeds in problems.items()}
        for cell, problems in found.items()
    }
