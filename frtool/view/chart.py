"""Charts for the terminal: lines, which need plotille (extra `plot`), and bars."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console

from frtool.errors import UsageError

from .glyphs import ASCII, glyphs_for
from .line import cells
from .safe import safe_line

_COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "red", "white")
_HEIGHT = 14
_BLANK, _LAST_BRAILLE = "\u2800", "\u28ff"


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart: `xs` and `ys` are of the same length, all above 0 on a logarithmic axis."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]


def check_chart() -> None:
    """Raise UsageError where no chart can be drawn."""
    try:
        import plotille  # noqa: F401
    except ImportError:
        raise UsageError("plotille is not installed", hint="install it: pip install 'flash-frtool[plot]'") from None


def chart(
    series: Sequence[Series], console: Console, *, title: str, x_label: str, y_label: str,
    y_limits: tuple[float, float] | None = None, log_y: bool = False,
) -> str:  # fmt: skip
    """The lines over a logarithmic x axis, each point marked by its series' letter, as wide, as colourful and in such
    letters as `console` bears. Raises UsageError where plotille is missing."""
    check_chart()
    import plotille

    figure = plotille.Figure()
    figure.width, figure.height = min(max(60, console.width), 120) - 30, _HEIGHT
    figure.origin = False
    figure.color_mode = "names"
    figure.with_colors = console.is_terminal and not console.no_color and not console.is_dumb_terminal
    figure.x_label, figure.y_label = x_label, y_label
    figure.x_ticks_fkt = lambda value, _: f"{10**value:,.0f}"
    figure.y_ticks_fkt = lambda value, _: _tick(10**value if log_y else value)
    points = [
        (math.log10(x), math.log10(y) if log_y else y) for one in series for x, y in zip(one.xs, one.ys, strict=True)
    ]
    figure.set_x_limits(*_limits([x for x, _ in points]))
    figure.set_y_limits(*(y_limits or _limits([y for _, y in points])))
    for i, one in enumerate(series):
        xs, ys = [math.log10(x) for x in one.xs], [math.log10(y) if log_y else y for y in one.ys]
        mark = chr(ord("A") + i % 26)
        figure.plot(xs, ys, lc=_COLOURS[i % len(_COLOURS)], label=safe_line(one.label, 60), marker=mark)
    text = f"{safe_line(title, 200)}\n{figure.show(legend=True)}\n"
    if glyphs_for(console.encoding) is ASCII:
        text = "".join("." if _BLANK < c <= _LAST_BRAILLE else " " if c == _BLANK else c for c in text)
        text = text.encode("ascii", "replace").decode()
    return "".join(line.replace(_BLANK, " ").rstrip() + "\n" for line in text.splitlines())


def bars(values: Mapping[str, float], console: Console, *, title: str) -> str:
    """A line for each of the values (at least 0), the highest as long as `console` is wide."""
    glyphs = glyphs_for(console.encoding)
    width = min(max(60, console.width), 120)
    labels = [safe_line(label, 2 * width // 3) for label in values]
    numbers = [_tick(value) for value in values.values()]
    left, right, top = max(map(cells, labels)), max(map(len, numbers)), max(values.values()) or 1.0
    text = safe_line(title, 200) + "\n"
    for label, number, value in zip(labels, numbers, values.values(), strict=True):
        bar = glyphs.share(value / top, width - left - right - 4)
        text += f"{label}{' ' * (left - cells(label))}  {number:>{right}}  {bar}".rstrip() + "\n"
    return text.encode("ascii", "replace").decode() if glyphs is ASCII else text


def _tick(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.2g}"


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """The values with a twentieth of room on each side."""
    low, high = min(values), max(values)
    room = (high - low) / 20 or 0.5
    return low - room, high + room
