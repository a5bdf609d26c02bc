"""The lines of the tree, with the figures of each node at the right."""

from __future__ import annotations

from dataclasses import dataclass

from .fold import Row, fold
from .glyphs import BEST, DIM, Glyphs, number
from .growing import end_of, with_growing
from .line import Line, cells
from .model import TreeModel, ViewNode
from .safe import safe_line


def tree_lines(model: TreeModel, width: int, height: int, glyphs: Glyphs) -> list[Line]:
    """A legend that is the columns' heading too, then the tree folded to the rest of `height`."""
    columns = _columns(width)
    headed = height >= 6
    room = height - 1 if headed else height
    # Lines are kept for what grows even while nothing does, so that the tree above does not jump.
    rows = with_growing(fold(model, room - room // 6 if model.pending else room), model.growing, room)
    legend = [_legend([row.node for row in rows if row.node is not None], columns, width, glyphs)] if headed else []
    return legend + [_row(row, columns, width, glyphs) for row in rows]


@dataclass(frozen=True, slots=True)
class _Columns:
    """The figures at the right of a line: the value's bar and number, the visits, reward and prior."""

    bar: int
    """Cells of the value's bar."""
    visits: bool
    prior: bool
    """Whether there are reward and prior."""
    reward_bar: bool
    """Whether the reward is a bar, for want of room for its number."""

    @property
    def width(self) -> int:
        extra = (13 if self.reward_bar else 14) if self.prior else 0
        return self.bar + 5 + (7 if self.visits else 0) + extra


def _columns(width: int) -> _Columns:
    bar = 0 if width < 50 else 8 if width >= 90 else 6
    return _Columns(bar, visits=width >= 36, prior=width >= 64, reward_bar=width < 90)


def _legend(nodes: list[ViewNode], columns: _Columns, width: int, glyphs: Glyphs) -> Line:
    """The marks that these nodes bear, as far as there is room, and the names of the figures."""
    seen = {_mark(node, glyphs)[0] for node in nodes} | {glyphs.growing for node in nodes if node.pending}
    known = {
        glyphs.step: "step",
        glyphs.finished: "finished",
        glyphs.cut: "cut at its limit",
        glyphs.right: "right",
        glyphs.wrong: "wrong",
        glyphs.closed: "searched out",
        glyphs.evicted: "evicted",
        glyphs.dropped: "dropped",
        glyphs.growing: "growing",
    }
    marks = [(mark, word) for mark, word in known.items() if mark in seen]
    words = ""
    for mark, word in marks:
        more = f"{mark} {word}  "
        if cells(words + more) > width - columns.width:
            break
        words += more
    line = Line((words, DIM)).fit(width - columns.width)
    line.add("value".rjust(columns.bar + 5) + (" visits" if columns.visits else ""), DIM)
    if columns.prior:
        line.add(" reward prior" if columns.reward_bar else " reward  prior", DIM)
    return line


def _row(row: Row, columns: _Columns, width: int, glyphs: Glyphs) -> Line:
    line = _guides(row, max(8, width // 3), glyphs)
    room = width - columns.width - 1
    node = row.node
    if row.growing is not None:
        line.add(f"{glyphs.growing} ", "yellow").add(end_of(row.growing, room - line.width, glyphs.more), "italic")
        return line.fit(room, glyphs.more)
    if node is None:
        words = f"{glyphs.more} {row.skipped} steps" if row.skipped else f"+{row.hidden:,} more"
        line.add(words, DIM)
        return line.fit(room, glyphs.more)
    suffix = Line()
    if node.copies:
        suffix.add(f" {glyphs.copies}{node.copies + 1}", DIM)
    if node.pending:
        suffix.add(f" {glyphs.growing}{node.pending}", "yellow")
    if row.hidden:
        suffix.add(f" +{row.hidden:,}", DIM)
    mark, mark_style = _mark(node, glyphs)
    faded = node.dropped and not row.best
    style = BEST if row.best and node.parent is not None else "bold" if row.best else DIM if faded else ""
    if mark:
        line.add(mark + " ", mark_style)
    line.add(safe_line(node.text, 4 * width) or "(empty step)", style)
    line.cut(max(room - suffix.width, 1), glyphs.more).extend(suffix).fit(width - columns.width, glyphs.more)
    return line.extend(_figures(node, columns, glyphs, row.best))


def _figures(node: ViewNode, columns: _Columns, glyphs: Glyphs, best: bool) -> Line:
    style, bar_style = ("bold", "green") if best else (DIM, DIM) if node.dropped else ("", "cyan")
    line = Line()
    if columns.bar:
        line.add(glyphs.share(node.value, columns.bar), bar_style)
    figures = " " + number(node.value)
    if columns.visits:
        figures += f"{node.visits:7,}" if node.visits else "      -"
    line.add(figures, style)
    if not columns.prior:
        return line
    prior = number(node.prior if node.parent else None)
    if not columns.reward_bar:
        return line.add(f"   {number(node.reward)}   {prior}", style)
    if node.reward is None:
        line.add("      -", style)
    else:
        line.add("  ").add(glyphs.share(node.reward, 5), bar_style)
    return line.add("  " + prior, style)


def _mark(node: ViewNode, glyphs: Glyphs) -> tuple[str, str]:
    if node.parent is None:
        return "", ""
    if node.verified is not None:
        return (glyphs.right, "bold green") if node.verified else (glyphs.wrong, "red")
    if node.terminal is not None:
        return (glyphs.cut, "yellow") if node.terminal == "length" else (glyphs.finished, "cyan")
    if node.dropped or node.closed:
        return (glyphs.dropped if node.dropped else glyphs.closed), DIM
    return (glyphs.evicted, "yellow") if node.evicted else (glyphs.step, DIM)


def _guides(row: Row, limit: int, glyphs: Glyphs) -> Line:
    line = Line()
    guides = row.guides
    if 2 * len(guides) > limit:
        line.add(glyphs.more, DIM)
        guides = guides[-(limit // 2) :]
    for goes_on in guides[:-1]:
        line.add(glyphs.pipe if goes_on else "  ", DIM)
    if guides:
        line.add(glyphs.fork if guides[-1] else glyphs.last, "green" if row.best else DIM)
    return line
