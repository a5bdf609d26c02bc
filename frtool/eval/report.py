"""The report of an evaluation: a table, and a plot of accuracy against what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frtool.errors import UsageError
from frtool.view.figure import headless_pyplot, save_figure
from frtool.view.safe import safe_line

from .control import RANDOM_POLICY
from .matched import Matched
from .summary import Summary

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

CONTROL_NOTE = f"{RANDOM_POLICY}: random legal steps and a verifier that never errs; a model has to beat it"

MATCHED_NOTE = (
    "best-of-n at the tokens, policy and scorer, that each spent: between its two nearest budgets, in the logarithm of "
    "tokens; difference paired by problem\noutside: fewer or more tokens than best-of-n's budgets, see "
    "--baseline-budgets"
)


def table(rows: Sequence[Summary]) -> Table:
    from rich.table import Table

    found = Table(caption=_note(rows), caption_justify="left", pad_edge=False, box=None, header_style="bold")
    found.add_column("task", overflow="fold")
    found.add_column("algorithm", no_wrap=True)
    for name in ("budget", "n", "selected % [95 % CI]", "pass@N %", "steps", "tokens", "scorer", "s", "KV saved"):
        found.add_column(name, justify="right", no_wrap=True)
    last = None
    for row in rows:
        found.add_row(
            safe_line(row.task, 60) if row.task != last else "",
            row.algorithm,
            "" if row.budget is None else str(row.budget),
            str(row.n),
            f"{100 * row.accuracy:.1f} [{100 * row.low:.1f}, {100 * row.high:.1f}]",
            f"{100 * row.passed:.1f}",
            f"{row.steps:.1f}",
            f"{row.policy_tokens:,.0f}",
            f"{row.scorer_tokens:,.0f}",
            f"{row.seconds:.2f}",
            "" if row.kv_saved is None else f"{row.kv_saved:.1f}x",
        )
        last = row.task
    return found


def matched_table(entries: Sequence[Matched]) -> Table:
    """Every algorithm beside best-of-n at equal tokens."""
    from rich.table import Table

    found = Table(title="at equal tokens", title_justify="left", pad_edge=False, box=None, header_style="bold")
    found.add_column("task", overflow="fold")
    found.add_column("algorithm", no_wrap=True)
    for name in ("budget", "tokens", "selected %", "best-of-n % [95 % CI]", "difference [95 % CI]"):
        found.add_column(name, justify="right", no_wrap=True)
    found.add_column("", no_wrap=True)
    found.caption, found.caption_justify = MATCHED_NOTE, "left"
    last = None
    for entry in entries:
        found.add_row(
            safe_line(entry.task, 60) if entry.task != last else "",
            entry.algorithm,
            "" if entry.budget is None else str(entry.budget),
            f"{entry.tokens:,.0f}",
            f"{100 * entry.accuracy:.1f}",
            _interval(entry.best_of_n, entry.low, entry.high),
            _interval(entry.difference, entry.difference_low, entry.difference_high, "+"),
            entry.verdict,
        )
        last = entry.task
    return found


def _interval(middle: float | None, low: float | None, high: float | None, sign: str = "") -> str:
    if middle is None or low is None or high is None:
        return ""
    middle, low, high = (round(100 * value, 1) + 0.0 for value in (middle, low, high))  # no -0.0
    return f"{middle:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def _note(rows: Sequence[Summary]) -> str:
    notes = ["budget in sampled steps; steps, tokens and seconds are means a problem"]
    if any(row.algorithm == RANDOM_POLICY for row in rows):
        notes.append(CONTROL_NOTE)
    failed = sum(row.failed for row in rows)
    if failed:
        notes.append(f"{failed} searches failed and count as wrong; results.jsonl has the reasons")
    return "\n".join(notes)


def check_plot() -> None:
    """Raise UsageError where no plot can be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError(
            "matplotlib is not installed", hint="install it: pip install 'flash-frtool[plot]', or pass --no-plot"
        ) from None


def plot(rows: Sequence[Summary], folder: Path) -> list[Path]:
    """Draw `accuracy.png` and `accuracy.svg`: for each task selected accuracy against tokens and against seconds."""
    from matplotlib import ticker

    pyplot = headless_pyplot()

    tasks = list(dict.fromkeys(row.task for row in rows))
    figure, axes = pyplot.subplots(len(tasks), 2, figsize=(11, 4.2 * len(tasks)), squeeze=False, sharey="row")
    for task, (by_tokens, by_seconds) in zip(tasks, axes, strict=True):
        here = [row for row in rows if row.task == task]
        for algorithm in dict.fromkeys(row.algorithm for row in here):
            line = [row for row in here if row.algorithm == algorithm]
            if algorithm == RANDOM_POLICY:
                for row in line:
                    for axis in (by_tokens, by_seconds):
                        axis.axhline(100 * row.accuracy, color="0.6", linestyle=":", linewidth=1)
                        axis.text(
                            0.01, 100 * row.accuracy, f" control, {row.budget} steps", color="0.4", fontsize=7,
                            transform=axis.get_yaxis_transform(), va="bottom",
                        )  # fmt: skip
                continue
            _line(by_tokens, line, [row.tokens for row in line], algorithm)
            _line(by_seconds, line, [row.seconds for row in line], algorithm)
        by_tokens.set_xlabel("tokens a problem (policy and scorer)")
        by_seconds.set_xlabel("seconds a problem")
        by_tokens.set_ylabel("selected answer right, %")
        for axis in (by_tokens, by_seconds):
            axis.set_title(safe_line(task, 60).replace("$", r"\$"), fontsize=10)
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=12))
            axis.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
            axis.xaxis.set_minor_formatter(ticker.NullFormatter())
            axis.set_ylim(0, 103)
            axis.grid(alpha=0.3)
        by_tokens.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    return save_figure(figure, folder, "accuracy")


def terminal_charts(rows: Sequence[Summary], console: Console) -> str:
    """For each task selected accuracy against tokens, as text. Raises UsageError where plotille is missing."""
    from frtool.view.chart import Series, chart

    charts = []
    for task in dict.fromkeys(row.task for row in rows):
        here = [row for row in rows if row.task == task and row.tokens > 0]
        lines = {
            algorithm: sorted((row.tokens, 100 * row.accuracy) for row in here if row.algorithm == algorithm)
            for algorithm in dict.fromkeys(row.algorithm for row in here)
        }
        series = [Series(name, *zip(*points, strict=True)) for name, points in lines.items()]
        if series:
            labels = ("tokens a problem", "right, %")
            charts.append(chart(series, console, title=task, x_label=labels[0], y_label=labels[1], y_limits=(0, 105)))
    return "\n".join(charts)


def _line(axis: Any, rows: Sequence[Summary], places: Sequence[float], label: str) -> None:
    below = [100 * (row.accuracy - row.low) for row in rows]
    above = [100 * (row.high - row.accuracy) for row in rows]
    heights = [100 * row.accuracy for row in rows]
    axis.errorbar(places, heights, yerr=[below, above], marker="o", capsize=3, label=label, linewidth=1.2)
