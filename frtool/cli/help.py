"""What drawing help imports."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

HELP_OPTIONS = ("-h", "--help")
_UNUSED = {"rich.markdown": "Markdown", "rich.traceback": "Traceback"}


def lighten_help(argv: Sequence[str]) -> None:
    """Where `argv` asks for help, import Typer's drawing of it without Rich's Markdown and tracebacks.

    Their parsers take a sixth of the time of `frtool --help`. Ours has no Markdown, and Typer draws no traceback of
    ours. Whoever imports these modules later gets them whole.
    """
    drawing = "typer.rich_utils"
    if drawing in sys.modules or (argv and not {*HELP_OPTIONS} & set(argv)):
        return
    absent = [name for name in _UNUSED if name not in sys.modules]
    try:
        for name in absent:
            stand_in = ModuleType(name)
            setattr(stand_in, _UNUSED[name], type(_UNUSED[name], (), {}))
            sys.modules[name] = stand_in
        importlib.import_module(drawing)
    except ImportError:  # another Typer, which says itself what it lacks
        pass
    finally:
        for name in absent:
            sys.modules.pop(name, None)
