"""What the benchmark commands share: the report in its forms, charts and progress."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from frtool.errors import FrtoolError, UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


class Report(Protocol):
    """What a benchmark found."""

    def to_dict(self) -> dict[str, Any]: ...


R = TypeVar("R", bound=Report)


def check_terminal_plot(wanted: bool, json: bool) -> None:
    """Raise UsageError where a chart in the terminal was asked for beside JSON."""
    if wanted and json:
        raise UsageError("--terminal-plot has no use with --json", hint="leave one of them out")


def publish(
    report: R,
    *,
    table: Callable[[R], Table],
    chart: Callable[[R, Console], str],
    draw: Callable[[R, Path], list[Path]],
    notes: Sequence[str] = (),
    json: bool,
    terminal_plot: bool,
    plot: Path | None,
) -> None:
    """Print the report as JSON, or as a table with its notes and, where wanted, a chart; draw charts into `plot`.

    Raises FrtoolError where charts are wanted without matplotlib, after the report is out.
    """
    from frtool.view.safe import safe_json, safe_line

    progress("")
    if json:
        print(safe_json(report.to_dict()))
    else:
        from rich.console import Console

        wide = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
        wide.print(table(report))
        for note in notes:
            wide.print(safe_line(note), markup=False)
        if terminal_plot:
            print("\n" + chart(report, wide), end="")
    if plot is not None:
        save_charts(partial(draw, report), plot)


def save_charts(draw: Callable[[Path], list[Path]], folder: Path) -> None:
    """Draw the charts into `folder` and name the files. Raises FrtoolError without matplotlib."""
    try:
        paths = draw(folder)
    except ImportError:
        raise FrtoolError("--plot needs matplotlib", hint='install it: pip install "flash-frtool[plot]"') from None
    from frtool.view.safe import safe_line

    for path in paths:
        print(f"wrote {safe_line(str(path))}", file=sys.stderr)


def progress(line: str) -> None:
    """On a terminal each line takes the place of the last; elsewhere they would only fill a log."""
    if sys.stderr is not None and sys.stderr.isatty():
        from frtool.view.safe import safe_line

        print(f"\r{safe_line(line, 70):<72}", end="\r", file=sys.stderr, flush=True)
