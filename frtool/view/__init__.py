"""What a person sees of a search, all of it drawn from events."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .live import LiveView
    from .plain import PlainView
    from .quiet import QuietView

    View = LiveView | PlainView | QuietView


def view_for(*, quiet: bool = False, progress: bool = True) -> View:
    """The view that stderr can bear: a live tree on a terminal, lines elsewhere, nothing where nothing is wanted."""
    if quiet:
        from .quiet import QuietView

        return QuietView()
    from .console import StderrConsole
    from .plain import PlainView

    console = StderrConsole()
    progress = progress and not os.environ.get("FRTOOL_NO_PROGRESS")
    # Forced colour may make a pipe look like a terminal to Rich; only a real one can be redrawn.
    if progress and console.is_interactive and not console.is_dumb_terminal and sys.stderr.isatty():
        from .live import LiveView

        return LiveView(console)
    return PlainView(console, progress=progress)
