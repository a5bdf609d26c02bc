"""What the benchmark commands share: charts and progress."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from frtool.errors import FrtoolError, UsageError
from frtool.view.safe import safe_line


def check_terminal_plot(wanted: bool, json: bool) -> None:
    """Raise UsageError where a chart in the terminal was asked for beside JSON."""
    if wanted and json:
        raise UsageError("--terminal-plot has no use with --json", hint="leave one of them out")


def save_charts(draw: Callable[[Path], list[Path]], folder: Path) -> None:
    """Draw the charts into `folder` and name the files. Raises FrtoolError without matplotlib."""
    try:
        paths = draw(folder)
    except ImportError:
        raise FrtoolError("--plot needs matplotlib", hint='install it: pip install "flash-frtool[plot]"') from None
    for path in paths:
        print(f"wrote {safe_line(str(path))}", file=sys.stderr)


def progress(line: str) -> None:
    """On a terminal each line takes the place of the last; elsewhere they would only fill a log."""
    if sys.stderr is not None and sys.stderr.isatty():
        print(f"\r{safe_line(line, 70):<72}", end="\r", file=sys.stderr, flush=True)
