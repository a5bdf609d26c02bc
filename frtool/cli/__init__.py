"""The command line: one file a command, nothing but options and one call. Heavy imports wait for the command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run `frtool` with `argv`, by default the process's own, and exit.

    Exit statuses: 0 answered, 1 failure, 2 usage, 3 searched but not solved, 130 interrupted.
    """
    from .app import run

    raise SystemExit(run(sys.argv[1:] if argv is None else argv))
