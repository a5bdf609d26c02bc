"""The commands, and the one place where what goes wrong becomes a line on stderr and an exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from frtool import __version__
from frtool.errors import FrtoolError, UsageError

from . import bench, compare, doctor, models, replay, resume, search, show
from . import eval as evaluation
from .errors import complain, explain, usage_error
from .help import HELP_OPTIONS, lighten_help
from .settings import Settings, origin, read_settings

app = typer.Typer(
    name="frtool",
    help="Search for an answer with a local language model: a tree of reasoning steps over one shared KV cache.",
    epilog='Begin with `frtool search "Make 24 from 4, 5, 6, 10"`.',
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": list(HELP_OPTIONS)},
)
app.command("search", cls=search.SearchCommand)(search.search)
app.command("resume")(resume.resume)
app.command("show")(show.show)
app.command("replay")(replay.replay)
app.command("compare")(compare.compare)
app.command("models")(models.models)
app.command("doctor")(doctor.doctor)
app.command("eval")(evaluation.evaluate)
app.add_typer(bench.app, name="bench")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"frtool {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Tracebacks of what nobody expected, from any command.")
    ] = False,
) -> None:
    return None


def run(argv: Sequence[str]) -> int:
    """Run one command and return its exit status. Lets no exception of a known kind out, and no traceback of any."""
    settings: Settings | None = None
    try:
        command: Any = typer.main.get_command(app)
        settings = _settings(command.commands, argv)
        lighten_help(argv)
        defaults = settings.defaults if settings else None
        status = command(args=list(argv), prog_name="frtool", standalone_mode=False, default_map=defaults, obj=settings)
        if sys.stdout is not None:
            sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except FrtoolError as error:
        return complain(error)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:
        close_stdout()
        return 1
    except Exception as error:
        if not hasattr(error, "format_message"):
            if {"-v", "--verbose"} & set(argv):
                import traceback

                traceback.print_exception(error)
            return complain(explain(error))
        return usage_error(error, origin(settings, error) if settings else None)


def _settings(commands: Mapping[str, Any], argv: Sequence[str]) -> Settings | None:
    """The user's defaults; None where they are damaged and the command has to work all the same."""
    try:
        return read_settings(commands)
    except UsageError:
        if not argv or argv[0] == "doctor" or {*HELP_OPTIONS, "--version"} & set(argv):
            return None
        raise


def close_stdout() -> None:
    """Let the interpreter's last flush of a pipe that nobody reads go nowhere, in silence."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)
