"""The charts of an allocator benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from frtool.view.chart import bars
from frtool.view.figure import headless_pyplot, save_figure

from .allocator import CYCLES_TARGET, AllocatorRow


def draw_chart(rows: Sequence[AllocatorRow], folder: Path) -> list[Path]:
    """allocator.png and allocator.svg in `folder`. Raises ImportError without matplotlib (extra `plot`)."""
    pyplot = headless_pyplot()

    folder.mkdir(parents=True, exist_ok=True)
    figure, axes = pyplot.subplots(figsize=(8.0, 3.5), layout="constrained")
    axes.barh([_label(row) for row in rows], [row.cycles_per_second for row in rows])
    axes.axvline(CYCLES_TARGET, color="black", linestyle="--", label=f"target of the first: {CYCLES_TARGET:,}")
    axes.invert_yaxis()
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel("cycles a second")
    axes.set_title("KV allocator, one thread")
    axes.legend(loc="center right", fontsize="small")  # beside the short bars
    return save_figure(figure, folder, "allocator")


def terminal_chart(rows: Sequence[AllocatorRow], console: Console) -> str:
    """A bar a case, as text, and one as long as the target."""
    values = {_label(row): row.cycles_per_second for row in rows}
    return bars(values | {"target of the first": CYCLES_TARGET}, console, title="cycles a second")


def _label(row: AllocatorRow) -> str:
    return f"{row.case}, {row.shared_blocks:,} blocks"
