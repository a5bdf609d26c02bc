"""`frtool show`: a recorded search as text, a page, a picture, a graph or data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from frtool.errors import FrtoolError, UsageError

if TYPE_CHECKING:
    from frtool.export.recorded import RecordedSearch

# Of the formats, the file endings that mean them; the first format is the default.
FORMATS = {
    "tree": (".txt",),
    "html": (".html", ".htm"),
    "md": (".md", ".markdown"),
    "mermaid": (".mmd", ".mermaid"),
    "dot": (".dot", ".gv"),
    "json": (".json",),
    "svg": (".svg",),
}
_LIMITS = {"mermaid": 120, "md": 60}
"""Lines of the tree where `--lines` does not say: what renders well elsewhere."""


def show(
    trace: Annotated[Path, typer.Argument(metavar="TRACE", help="A trace that `frtool search --trace` wrote.")],
    format: Annotated[
        str | None,
        typer.Option("--format", "-f", help="tree, html, md, mermaid, dot, json or svg; default by --output."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Write there instead of to stdout.")
    ] = None,
    lines: Annotated[
        int | None, typer.Option(help="Fold the tree to so many lines or graph nodes, the best first.")
    ] = None,
    animate: Annotated[
        bool, typer.Option("--animate", help="Let the SVG replay the search; for a README or a talk.")
    ] = False,
) -> int:
    """Show a recorded search: the tree in the terminal, or one HTML page that replays it without a network."""
    chosen = _format(format, output)
    if lines is not None and lines < 1:
        raise UsageError(f"--lines is {lines}, but must be at least 1")
    if lines is not None and chosen in ("html", "json", "svg"):
        raise UsageError(f"--lines has no meaning for the format {chosen}", hint="it folds tree, md, mermaid and dot")
    if animate and chosen != "svg":
        raise UsageError(f"--animate has no meaning for the format {chosen}", hint="it moves an svg; html moves anyway")
    from frtool.export.recorded import read_search
    from frtool.files import check_writable, save_text

    if output is not None:
        check_writable(output)
    search = read_search(trace)
    if search.note:
        warn(search.note)
    if output is None and chosen == "tree":
        _print_tree(search, lines)
        return 0
    if animate:
        from frtool.export.recording import recording

        text = recording(search)
    else:
        text = _text(search, chosen, lines)
    if output is not None:
        save_text(output, text)
    else:
        print_text(text)
    return 0


def warn(text: str) -> None:
    from rich.text import Text

    from frtool.view.console import StderrConsole

    StderrConsole().print(Text.assemble(("warning: ", "bold yellow"), text), soft_wrap=True)


def print_text(text: str) -> None:
    """Print on stdout, in whatever encoding it has."""
    stdout = sys.stdout
    if stdout is None:
        raise UsageError("there is no stdout", hint="write to a file with --output")
    reconfigure = getattr(stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
    stdout.write(text)
    stdout.flush()


def _format(name: str | None, output: Path | None) -> str:
    if name is not None:
        if name not in FORMATS:
            raise UsageError(f"--format `{name}` is unknown", hint=f"choose from {', '.join(FORMATS)}")
        return name
    if output is None:
        return next(iter(FORMATS))
    for known, suffixes in FORMATS.items():
        if output.suffix.lower() in suffixes:
            return known
    raise UsageError(
        f"what to write into {output} is not clear from its name", hint=f"pass --format {', '.join(FORMATS)}"
    )


def _text(search: RecordedSearch, chosen: str, lines: int | None) -> str:
    from frtool.export.outline import whole

    limit = lines or _LIMITS.get(chosen) or whole(search.model)
    match chosen:
        case "html":
            from frtool.export.html import html

            return html(search)
        case "md":
            from frtool.export.markdown import markdown

            return markdown(search, limit)
        case "mermaid":
            from frtool.export.graphs import mermaid

            return mermaid(search.model, limit)
        case "dot":
            from frtool.export.graphs import dot

            return dot(search.model, limit)
        case "json":
            from frtool.export.recorded import finished_model
            from frtool.view.safe import safe_json

            from .result import result_record

            record = {"complete": search.complete} | result_record(finished_model(search))
            try:
                return safe_json(record, indent=2) + "\n"
            except RecursionError:
                raise FrtoolError(
                    "the tree is too deep for nested JSON", hint="the trace itself is JSON, one event a line"
                ) from None
        case "svg":
            from frtool.export.recorded import finished_model
            from frtool.view.picture import svg

            return svg(finished_model(search))
    return _plain_tree(search, lines)


def _print_tree(search: RecordedSearch, lines: int | None) -> None:
    from rich.console import Console

    from frtool.export.text import print_tree

    print_tree(search, Console(highlight=False, markup=False, emoji=False), lines)


def _plain_tree(search: RecordedSearch, lines: int | None) -> str:
    import io

    from rich.console import Console

    from frtool.export.text import print_tree

    file = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    console = Console(file=file, width=100, color_system=None, highlight=False, markup=False, emoji=False)
    print_tree(search, console, lines)
    file.seek(0)
    return "".join(line.rstrip() + "\n" for line in file)
