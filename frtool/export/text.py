"""The tree as lines of text, the way the terminal shows it."""

from __future__ import annotations

from rich.console import Console

from frtool.view.draw import header
from frtool.view.glyphs import ASCII, glyphs_for
from frtool.view.line import Picture
from frtool.view.report import report
from frtool.view.rows import tree_lines

from .outline import whole
from .recorded import RecordedSearch, finished_model


def print_tree(search: RecordedSearch, console: Console, limit: int | None) -> None:
    """Print header, tree (at most `limit` lines, None for all) and report on `console`."""
    model = finished_model(search)
    glyphs = glyphs_for(console.encoding)
    width = max(console.width, 20)
    lines = [*header(model, width, glyphs), *tree_lines(model, width, limit or whole(model) + 1, glyphs)]
    if glyphs is ASCII:
        for line in lines:
            line.ascii()
    console.print(Picture(lines), soft_wrap=True)
    console.print()
    for block in report(model, glyphs):
        console.print(block)
