"""One line of the picture: styled runs whose width is known. Cheaper than Rich's `Text`, and as deaf to markup."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions
from rich.segment import Segment
from rich.style import Style

_style = lru_cache(maxsize=64)(Style.parse)


def cells(text: str) -> int:
    """Columns that `text`, which must have passed `safe_line`, takes on a terminal."""
    return len(text) if text.isascii() else cell_len(text)


class Line:
    """Runs of text with a style each; `width` in cells."""

    __slots__ = ("runs", "width")

    def __init__(self, *runs: tuple[str, str] | str | Line) -> None:
        self.runs: list[tuple[str, str]] = []
        self.width = 0
        for run in runs:
            if isinstance(run, Line):
                self.extend(run)
            elif isinstance(run, str):
                self.add(run)
            else:
                self.add(*run)

    def add(self, text: str, style: str = "") -> Line:
        if text:
            self.runs.append((text, style))
            self.width += cells(text)
        return self

    def extend(self, other: Line) -> Line:
        self.runs += other.runs
        self.width += other.width
        return self

    def cut(self, width: int, end: str = "…") -> Line:
        """At most `width` cells, `end` in place of what was cut."""
        if self.width <= width:
            return self
        room = width - cells(end)
        if room < 0:
            room, end = max(width, 0), ""
        runs: list[tuple[str, str]] = []
        for text, style in self.runs:
            size = cells(text)
            if size > room:
                runs.append((text[:room] if text.isascii() else set_cell_size(text, room), style))
                room = 0
                break
            runs.append((text, style))
            room -= size
        if runs:
            runs[-1] = (runs[-1][0] + end, runs[-1][1])
        self.runs = runs
        self.width = sum(cells(text) for text, _ in runs)
        return self

    def fit(self, width: int, end: str = "…") -> Line:
        """Exactly `width` cells."""
        self.cut(width, end)
        return self.add(" " * (width - self.width))

    def ascii(self) -> Line:
        """With question marks for what a plain terminal lacks, each run as wide as before."""
        runs = []
        for text, style in self.runs:
            width = cells(text)
            runs.append((text.encode("ascii", "replace").decode()[:width].ljust(width), style))
        self.runs = runs
        return self

    @property
    def plain(self) -> str:
        return "".join(text for text, _ in self.runs)


class Picture:
    """Lines as something that Rich can print."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self.lines = list(lines)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for i, line in enumerate(self.lines):
            if i:
                yield Segment.line()
            for text, style in line.runs:
                yield Segment(text, _style(style) if style else None)
        yield Segment.line()
