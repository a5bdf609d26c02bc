"""Exit statuses, and errors in the user's words: `error: …`, then `hint: …`."""

from __future__ import annotations

import contextlib
import sys

from frtool.errors import FrtoolError, UsageError

SOLVED, FAILED, UNSOLVED = 0, 1, 3
_NO_MEMORY = ("OutOfMemoryError", "MemoryError", "OutOfBlocks", "OutOfMemory")


def complain(error: FrtoolError) -> int:
    """Print the error on stderr; its exit status."""
    from rich.text import Text

    from frtool.view.console import StderrConsole
    from frtool.view.safe import safe_line

    console = StderrConsole()
    with contextlib.suppress(OSError):  # nobody is there to read it; the status still tells
        console.print(Text.assemble(("error: ", "bold red"), safe_line(error.message, 2000)), soft_wrap=True)
        if error.hint:
            console.print(Text.assemble(("hint: ", "bold cyan"), safe_line(error.hint, 2000)), soft_wrap=True)
    return error.exit_code


def explain(error: BaseException) -> FrtoolError:
    """A known failure for any exception: itself, out of memory, or the unexpected by its name."""
    from frtool.search.options import OptionError

    if isinstance(error, FrtoolError):
        return error
    if isinstance(error, OptionError):
        return UsageError(str(error))
    name = type(error).__name__
    said = " ".join(str(error).split())
    if name in _NO_MEMORY:
        return FrtoolError(
            f"out of memory: {said}" if said else "out of memory",
            hint="give the cache less with --kv-memory, or search with a smaller --batch, --max-depth or model",
        )
    if name == "BadReward":
        return FrtoolError(said, hint="the model that judges does not work here; try another --dtype or --scorer")
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return FrtoolError(f"{where}{error.strerror or said}")
    return FrtoolError(
        f"unexpected {name}: {said}" if said else f"unexpected {name}",
        hint="this is a fault of frtool; `frtool -v` with the same command shows the traceback for a report",
    )


def usage_error(error: Exception, origin: str | None = None) -> int:
    """The complaint about a command line that Typer could not parse; its exit status. `origin` says where the value
    comes from, if not from the command line."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "frtool"
    message = error.format_message()  # type: ignore[attr-defined]
    if type(error).__name__ == "NoArgsIsHelpError":
        if message:
            print(message, file=sys.stderr)
        return 2
    return complain(UsageError(_our_way(message), hint=f"it comes from {origin}" if origin else _hint(message, path)))


def _our_way(message: str) -> str:
    message = message.strip().rstrip(".").replace(", unable to parse string as", ":").partition(", unable to")[0]
    return message[:1].lower() + message[1:] if message[:2].istitle() or message[1:2].islower() else message


def _hint(message: str, path: str) -> str:
    if message.startswith("No such command") and path != "frtool":
        return f"`{path} --help` lists the commands"
    if message.startswith("No such command"):
        return 'to search, `frtool search "your question"`; `frtool --help` lists the commands'
    if path != "frtool search":
        return f"`{path} --help` lists the options"
    if "unexpected extra argument" in message:
        return f'put the prompt in quotes: `{path} "your question"`'
    if message.startswith("No such option"):
        return f"`{path} --help` lists the options; put `--` before a prompt that begins with a dash"
    return f"`{path} --help` lists the options"
