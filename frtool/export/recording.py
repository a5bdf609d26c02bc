"""A search as one moving SVG: the live view played in a picture that any browser or README shows."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from itertools import groupby

from rich.console import Console
from rich.style import Style
from rich.terminal_theme import SVG_EXPORT_THEME

from frtool.view.draw import draw
from frtool.view.line import Line, cells
from frtool.view.model import TreeModel
from frtool.view.report import report

from .recorded import RecordedSearch, event_seconds, finished_model

WIDTH, HEIGHT = 116, 33
_FRAMES_A_SECOND = 5
_SHORTEST, _LONGEST = 6.0, 12.0
"""Seconds that a search plays for, so that eyes can follow; what lies between plays in its own time."""
_REST = 6.0
"""Seconds that the end is shown for."""
_CELL, _ROW, _SIZE, _TOP, _EDGE = 8.4, 19, 14, 46, 18


def recording(search: RecordedSearch, width: int = WIDTH, height: int = HEIGHT) -> str:
    """The SVG text, `width` x `height` cells. It moves by style sheet alone, asks for nothing, and stands still at the
    end of the search where motion is not wanted or not known."""
    last = _last_frame(search, width)
    rows = max(height, len(last))
    playing = min(max(event_seconds(search.events)[-1], _SHORTEST), _LONGEST)
    frames = [*_frames(search, width, rows, round(playing * _FRAMES_A_SECOND)), last]
    starts = [i / _FRAMES_A_SECOND for i in range(len(frames))]
    total = starts[-1] + _REST
    classes: dict[str, str] = {}
    spans: set[tuple[int, int]] = set()
    lines = []
    for row in range(rows):
        contents = [frame[row] if row < len(frame) else Line() for frame in frames]
        at = 0
        for _, same in groupby(contents, key=lambda line: line.runs):
            group = list(same)
            span = (at, at + len(group))
            at = span[1]
            text = _text(group[0], classes)
            if text:
                spans.add(span)
                lines.append(f'<text class="{_name(span)}" y="{_TOP + row * _ROW}">{text}</text>')
    moves = "".join(_motion(span, starts, total, len(frames)) for span in sorted(spans))
    styles = "".join(f".{name}{{{style.replace('color:', 'fill:')}}}" for style, name in classes.items())
    return _page(width, rows, styles, moves, "\n".join(lines))


def _frames(search: RecordedSearch, width: int, height: int, count: int) -> Iterator[list[Line]]:
    """`count` pictures at even distances of time, the first when the search begins."""
    seconds = event_seconds(search.events)
    model, at = TreeModel(), 0
    for i in range(count):
        now = seconds[-1] * i / count
        while at < len(search.events) - 1 and (at == 0 or seconds[at] <= now):
            model.apply(search.events[at])
            at += 1
        yield draw(model, width, height)


def _last_frame(search: RecordedSearch, width: int) -> list[Line]:
    """The finished tree and the report below it."""
    model = finished_model(search)
    console = Console(width=width, color_system=None, highlight=False, markup=False, emoji=False)
    below = [
        Line(*((segment.text, str(segment.style or "")) for segment in line if segment.text))
        for block in report(model)
        for line in console.render_lines(block, pad=False)
    ]
    return [*draw(model, width, max(8, HEIGHT - 1 - len(below))), Line(), *below]


def _text(line: Line, classes: dict[str, str]) -> str:
    """The runs of a line, each at its own column so that no font can shift what follows."""
    parts, column = [], 0
    for text, style in line.runs:
        width = cells(text)
        start = column + width - cells(text.lstrip())
        column += width
        shown = text.strip()
        if not shown:
            continue
        css = Style.parse(style if style != "none" else "").get_html_style(SVG_EXPORT_THEME) if style else ""
        name = f' class="{classes.setdefault(css, f"s{len(classes)}")}"' if css else ""
        size = f'textLength="{cells(shown) * _CELL:.1f}"'
        parts.append(f'<tspan x="{_EDGE + start * _CELL:.1f}" {size}{name}>{escape(shown)}</tspan>')
    return "".join(parts)


def _name(span: tuple[int, int]) -> str:
    return f"f{span[0]}-{span[1]}"


def _motion(span: tuple[int, int], starts: list[float], total: float, frames: int) -> str:
    """The rule that shows what stands in frames [first, end) and nowhere else; what never changes needs none."""
    first, end = span
    if first == 0 and end == frames:
        return ""
    name = _name(span)
    marks = [f"0%{{visibility:{'hidden' if first else 'visible'}}}"]
    if first:
        marks.append(f"{100 * starts[first] / total:.2f}%{{visibility:visible}}")
    if end < frames:
        marks.append(f"{100 * starts[end] / total:.2f}%{{visibility:hidden}}")
    still = "" if end == frames else "visibility:hidden;"
    return f"@keyframes {name}{{{''.join(marks)}}}.{name}{{{still}animation:{name} {total:.1f}s step-end infinite}}"


def _page(width: int, rows: int, styles: str, moves: str, lines: str) -> str:
    theme = SVG_EXPORT_THEME
    ground, ink = theme.background_color.hex, theme.foreground_color.hex
    right, bottom = 2 * _EDGE + width * _CELL, _TOP + rows * _ROW
    dots = "".join(
        f'<circle cx="{22 + 20 * i}" cy="20" r="6" fill="{colour}"/>'
        for i, colour in enumerate(("#ff5f57", "#febc2e", "#28c840"))
    )
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right:.0f} {bottom}" role="img">
<title>A search, recorded by frtool</title>
<style>text{{font:{_SIZE}px "Fira Code","DejaVu Sans Mono",Menlo,Consolas,monospace;fill:{ink};white-space:pre}}
{styles}
{moves}
@media (prefers-reduced-motion:reduce){{text{{animation:none!important}}}}</style>
<rect width="{right:.0f}" height="{bottom}" rx="10" fill="{ground}"/>{dots}
{lines}
</svg>
"""
