"""From results to the figures of the report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .plan import Cell
from .record import Result
from .statistics import wilson


@dataclass(frozen=True, slots=True)
class Summary:
    """Figures of one cell. Shares are of `n`, means a problem."""

    task: str
    algorithm: str
    budget: int | None
    n: int
    """Problems times seeds."""
    correct: int
    accuracy: float
    """Of the selected answers."""
    low: float
    high: float
    """Wilson's 95 % interval of `accuracy`, as if all n were independent."""
    passed: float
    """Share with a right answer among the finished paths: pass@N."""
    failed: int
    """Searches that ended in an error or without memory; they count as wrong."""
    steps: float
    nodes: float
    policy_tokens: float
    scorer_tokens: float
    seconds: float
    """Of the machine, a problem: the cell's time over n."""
    latency: float
    kv_saved: float | None
    """Peak of the KV without sharing over the peak with it; None without a model."""

    @property
    def cell(self) -> Cell:
        return Cell(self.task, self.algorithm, self.budget)

    @property
    def tokens(self) -> float:
        """Of policy and scorer."""
        return self.policy_tokens + self.scorer_tokens


def summarise(results: Iterable[Result]) -> list[Summary]:
    """One summary a cell, in the order in which the cells first come. A result that comes twice counts once."""
    cells: dict[Cell, dict[tuple[Cell, str, int], Result]] = {}
    for result in results:
        cells.setdefault(result.cell, {})[result.key] = result
    return [_summary(cell, list(found.values())) for cell, found in cells.items()]


def _summary(cell: Cell, results: list[Result]) -> Summary:
    n = len(results)
    correct = sum(result.correct for result in results)
    low, high = wilson(correct, n)
    peak = max(result.kv_peak_bytes for result in results)
    unshared = max(result.kv_unshared_peak_bytes for result in results)

    def mean(name: str) -> float:
        return float(sum(getattr(result, name) for result in results)) / n

    return Summary(
        task=cell.task,
        algorithm=cell.algorithm,
        budget=cell.budget,
        n=n,
        correct=correct,
        accuracy=correct / n,
        low=low,
        high=high,
        passed=mean("passed"),
        failed=sum(result.reason == "memory" or result.reason.startswith("failed") for result in results),
        steps=mean("steps"),
        nodes=mean("nodes"),
        policy_tokens=mean("policy_tokens"),
        scorer_tokens=mean("scorer_tokens"),
        seconds=mean("seconds"),
        latency=mean("latency"),
        kv_saved=unshared / peak if peak else None,
    )
