"""The finished tree as one SVG file, drawn like the terminal and with nothing to load from a network."""

from __future__ import annotations

import inspect
import io
import re
from pathlib import Path

from rich.console import Console

from frtool.files import save_text

from .draw import draw
from .line import Picture
from .model import TreeModel
from .report import report

WIDTH = 120
HEIGHT = 34


def svg(model: TreeModel, width: int = WIDTH, height: int = HEIGHT) -> str:
    """The picture and the report of `model` as SVG text."""
    console = Console(
        record=True, width=width, height=height, file=io.StringIO(), force_terminal=True, color_system="truecolor",
        highlight=False, markup=False, emoji=False, legacy_windows=False, no_color=False,
    )  # fmt: skip
    console.print(Picture(draw(model, width, height)))
    console.print()
    for block in report(model):
        console.print(block)
    return console.export_svg(title="frtool search", code_format=_without_web_fonts(), unique_id="frtool")


def write_svg(model: TreeModel, path: Path) -> None:
    """Write the picture to `path`, whole or not at all. Raises FrtoolError."""
    save_text(path, svg(model))


def _without_web_fonts() -> str:
    template = inspect.signature(Console.export_svg).parameters["code_format"].default
    return re.sub(r"@font-face \{\{.*?\}\}\s*", "", template, flags=re.DOTALL)
