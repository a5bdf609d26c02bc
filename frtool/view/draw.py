"""The lines of the picture: header, tree, counters. Plain `Text`, never markup, so no text can style the terminal."""

from __future__ import annotations

from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text

from .fold import Row, fold
from .model import TreeModel, ViewNode
from .safe import safe_line

WIDE = 110
"""Columns from which the counters stand beside the tree instead of below it."""
_SIDE = 36


@dataclass(frozen=True, slots=True)
class Glyphs:
    """What lines and marks are drawn with."""

    fork: str = "├╴"
    last: str = "╰╴"
    pipe: str = "│ "
    right: str = "✓"
    wrong: str = "✗"
    finished: str = "●"
    cut: str = "◑"
    step: str = "○"
    dropped: str = "∅"
    growing: str = "⋯"
    copies: str = "×"  # noqa: RUF001
    more: str = "…"
    full: str = "━"
    rest: str = "─"
    bars: str = "▏▎▍▌▋▊▉█"
    spark: str = "▁▂▃▄▅▆▇█"
    edge: str = "│"
    dot: str = " · "


UNICODE = Glyphs()
ASCII = Glyphs(
    fork="|-", last="`-", pipe="| ", right="+", wrong="!", finished="*", cut="~", step="o", dropped="-", growing="..",
    copies="x", more="..", full="#", rest="-", bars="#", spark="_.-=#", edge="|", dot=" | ",
)  # fmt: skip

_BEST = "bold green"
_DIM = "dim"


def glyphs_for(encoding: str | None) -> Glyphs:
    return UNICODE if (encoding or "").lower().replace("-", "").startswith("utf") else ASCII


def draw(model: TreeModel, width: int, height: int, glyphs: Glyphs = UNICODE) -> list[Text]:
    """The whole picture in at most `height` lines (at least 1) of at most `width` cells."""
    width = max(width, 20)
    wide = width >= WIDE
    top = header(model, width, glyphs)
    bottom = [] if wide else counters(model, width, glyphs)
    if height < len(top) + len(bottom) + 6:  # a tiny window: the tree first
        top, bottom = top[: 1 if height >= 4 else 0], bottom[: 1 if height >= 8 else 0]
    room = max(1, height - len(top) - len(bottom))
    body = tree_lines(model, width - _SIDE - 3 if wide else width, room, glyphs)
    if wide:
        body = _beside(body, side_panel(model, _SIDE, glyphs)[:room], width, glyphs)
    lines = [*top, *body, *bottom][: max(height, 1)]
    if glyphs is ASCII:
        for line in lines:
            line.plain = line.plain.encode("ascii", "replace").decode()
    return lines


def header(model: TreeModel, width: int, glyphs: Glyphs) -> list[Text]:
    """What runs, for how long, and how much of each budget is spent."""
    config, info = model.config, model.run.model if model.run else {}
    parts = [
        safe_line(str(config.get("algorithm", "search"))),
        safe_line(str(info.get("name") or config.get("model", ""))),
        " ".join(safe_line(str(info[k])).removeprefix("torch.") for k in ("device", "dtype") if info.get(k)),
    ]
    state = _ending(model.ended.reason) if model.ended else f"{model.seconds:.1f} s"
    title = Text("frtool ", style="bold cyan")
    title.append(parts[0], style="bold")
    title.append("".join(glyphs.dot + p for p in parts[1:] if p))
    title = _fit(title, width - cell_len(state) - 1)
    title.append(" " + state, style="bold" if model.ended else "")
    budgets = _budgets(model, width, glyphs)
    return [title, budgets] if budgets else [title]


def tree_lines(model: TreeModel, width: int, height: int, glyphs: Glyphs) -> list[Text]:
    """A legend that is the columns' heading too, then the tree folded to the rest of `height`."""
    columns = _columns(width)
    lines = [_legend(columns, width, glyphs)] if height >= 6 else []
    return lines + [_row(row, columns, width, glyphs) for row in fold(model, height - len(lines))]


def counters(model: TreeModel, width: int, glyphs: Glyphs) -> list[Text]:
    """The answer so far, memory and speed, in three lines."""
    lines = [_best_line(model, glyphs)]
    tick = model.tick
    if tick is not None:
        kv = Text("KV    ", style=_DIM)
        kv.append_text(_bar(tick.blocks_used, tick.blocks_total, 8, glyphs))
        kv.append(f" {tick.blocks_used:,}/{tick.blocks_total:,} blocks")
        kv.append(f"{glyphs.dot}{tick.physical_tokens:,} tokens, {tick.logical_tokens:,} unshared")
        if ratio := _ratio(tick.logical_tokens, tick.physical_tokens):
            kv.append(f" ({ratio} less)", style="cyan")
        speed = Text("batch ", style=_DIM)
        speed.append_text(_bar(tick.rows, tick.capacity, 8, glyphs))
        speed.append(f" {tick.rows}/{tick.capacity} rows")
        speed.append(f"{glyphs.dot}{tick.tokens_per_second:,.0f} tokens/s", style="cyan")
        speed.append(f"{glyphs.dot}{tick.forks:,} forks, {tick.frees:,} frees")
        if tick.note:
            speed.append(glyphs.dot + safe_line(tick.note, 60), style="yellow")
        lines += [kv, speed]
    return [_fit(line, width) for line in lines]


def side_panel(model: TreeModel, width: int, glyphs: Glyphs) -> list[Text]:
    """The same counters as a column, with the history of the pool."""
    blank = Text()
    lines = [Text("answer so far", style=_DIM), *_answer_lines(model, width, glyphs), blank]
    tick = model.tick
    if tick is not None:
        ratio = _ratio(tick.logical_tokens, tick.physical_tokens)
        lines += [
            Text("KV memory", style=_DIM),
            Text.assemble(_bar(tick.blocks_used, tick.blocks_total, width - 2, glyphs)),
            Text(f"{tick.blocks_used:,} of {tick.blocks_total:,} blocks"),
            Text(_spark(list(model.blocks), width - 2, glyphs), style="cyan"),
            _pair("held", f"{tick.physical_tokens:,} tokens", width),
            _pair("unshared", f"{tick.logical_tokens:,} tokens", width),
            _pair("sharing", ratio or "none yet", width, "bold cyan" if ratio else ""),
            _pair("forks, frees", f"{tick.forks:,}, {tick.frees:,}", width),
            blank,
            Text("decode batch", style=_DIM),
            Text.assemble(_bar(tick.rows, tick.capacity, width - 2, glyphs)),
            _pair("live rows", f"{tick.rows} of {tick.capacity}", width),
            _pair("speed", f"{tick.tokens_per_second:,.0f} tokens/s", width, "bold cyan"),
            _pair("tokens sampled", f"{tick.policy_tokens:,}", width),
            _pair("tokens scored", f"{tick.scorer_tokens:,}", width),
            blank,
            Text("tree", style=_DIM),
            _pair("steps", f"{tick.nodes:,}", width),
            _pair("finished paths", f"{model.terminals:,}", width),
            _pair("growing", f"{len(model.pending):,}", width),
        ]
        if tick.note:
            lines += [blank, Text(safe_line(tick.note), style="yellow")]
    info = model.run.model if model.run else {}
    if info.get("attention"):
        lines += [blank, Text("attention", style=_DIM), Text(safe_line(str(info["attention"])))]
    return [_fit(line, width) for line in lines]


def number(value: float | None) -> str:
    """A value in [0, 1] in four cells."""
    return "   -" if value is None or value != value else f"{value:4.2f}"


@dataclass(frozen=True, slots=True)
class _Columns:
    bar: int
    extra: bool

    @property
    def width(self) -> int:
        return self.bar + (1 if self.bar else 0) + 4 + 7 + (14 if self.extra else 0)


def _columns(width: int) -> _Columns:
    return _Columns(bar=0 if width < 50 else 6 if width < 76 else 8, extra=width >= 90)


def _legend(columns: _Columns, width: int, glyphs: Glyphs) -> Text:
    marks = [
        (glyphs.step, "step"),
        (glyphs.finished, "finished"),
        (glyphs.right, "right"),
        (glyphs.wrong, "wrong"),
        (glyphs.dropped, "dropped"),
        (glyphs.growing, "growing"),
    ]
    line = Text(style=_DIM)
    room = width - columns.width - 2
    for mark, word in marks:
        if cell_len(line.plain) + cell_len(mark) + len(word) + 3 > room:
            break
        line.append(f"{mark} {word}  ")
    line = _fit(line, width - columns.width)
    line.append(f"{'value':>{columns.bar + (1 if columns.bar else 0) + 4}} visits")
    if columns.extra:
        line.append(" reward  prior")
    return line


def _row(row: Row, columns: _Columns, width: int, glyphs: Glyphs) -> Text:
    line = _guides(row, max(8, width // 3), glyphs)
    room = width - columns.width - 1
    node = row.node
    if node is None:
        words = f"{glyphs.more} {row.skipped} steps" if row.skipped else f"+{row.hidden:,} more"
        line.append(words, style=_DIM)
        return _fit(line, room)
    suffix = Text()
    if node.copies:
        suffix.append(f" {glyphs.copies}{node.copies + 1}", style=_DIM)
    if node.pending:
        suffix.append(f" {glyphs.growing}{node.pending}", style="yellow")
    if row.hidden:
        suffix.append(f" +{row.hidden:,}", style=_DIM)
    mark, mark_style = _mark(node, glyphs)
    faded = node.pruned is not None and not row.best
    style = _BEST if row.best and node.parent is not None else "bold" if row.best else _DIM if faded else ""
    if mark:
        line.append(mark + " ", style=mark_style)
    line.append(safe_line(node.text, 4 * width) or "(empty step)", style=style)
    room -= suffix.cell_len
    if line.cell_len > room:
        line.truncate(max(room, 1), overflow="ellipsis")
    line.append_text(suffix)
    line = _fit(line, width - columns.width)
    line.append_text(_figures(node, columns, glyphs, row.best))
    return line


def _figures(node: ViewNode, columns: _Columns, glyphs: Glyphs, best: bool) -> Text:
    value = node.value
    line = Text(style=_DIM if node.pruned and not best else "")
    if columns.bar:
        line.append(_small_bar(value, columns.bar, glyphs), style="green" if best else "cyan")
        line.append(" ")
    line.append(number(value), style="bold" if best else "")
    line.append(f"{node.visits:7,}" if node.visits else "      -")
    if columns.extra:
        line.append(f"   {number(node.reward)}" + (f"   {number(node.prior)}" if node.parent else "      -"))
    return line


def _mark(node: ViewNode, glyphs: Glyphs) -> tuple[str, str]:
    if node.parent is None:
        return "", ""
    if node.verified is not None:
        return (glyphs.right, "bold green") if node.verified else (glyphs.wrong, "red")
    if node.terminal is not None:
        return (glyphs.cut, "yellow") if node.terminal == "length" else (glyphs.finished, "cyan")
    return (glyphs.dropped, _DIM) if node.pruned else (glyphs.step, _DIM)


def _guides(row: Row, limit: int, glyphs: Glyphs) -> Text:
    line = Text()
    guides = row.guides
    if 2 * len(guides) > limit:
        line.append(glyphs.more, style=_DIM)
        guides = guides[-(limit // 2) :]
    for goes_on in guides[:-1]:
        line.append(glyphs.pipe if goes_on else "  ", style=_DIM)
    if guides:
        line.append(glyphs.fork if guides[-1] else glyphs.last, style="green" if row.best else _DIM)
    return line


def _best_line(model: TreeModel, glyphs: Glyphs) -> Text:
    line = Text("best  ", style=_DIM)
    node = model.best()
    if node.parent is None:
        return line.append("nothing yet", style=_DIM)
    if node.answer is not None:
        line.append(safe_line(node.answer), style=_BEST)
    else:
        line.append("no answer yet, on a line of " + _count(node.depth, "step"))
    if node.reward is not None:
        line.append(f"{glyphs.dot}score {number(node.reward).strip()}")
    if node.verified is not None:
        line.append(f" {glyphs.right} verified" if node.verified else f" {glyphs.wrong} wrong",
                    style="bold green" if node.verified else "red")  # fmt: skip
    line.append(f"{glyphs.dot}{_count(model.terminals, 'finished path')}")
    return line


def _answer_lines(model: TreeModel, width: int, glyphs: Glyphs) -> list[Text]:
    node = model.best()
    if node.answer is None:
        return [Text("none yet")]
    lines = [Text(safe_line(node.answer), style=_BEST)]
    if node.reward is not None:
        lines.append(_pair("score", number(node.reward).strip(), width))
    if node.verified is not None:
        lines.append(
            Text(f"{glyphs.right} verified", style="bold green")
            if node.verified
            else Text(f"{glyphs.wrong} wrong", style="red")
        )
    return lines


def _budgets(model: TreeModel, width: int, glyphs: Glyphs) -> Text | None:
    config, tick, ended = model.config, model.tick, model.ended
    last = ended or tick
    spent: dict[str, float] = {
        "tokens": last.policy_tokens + last.scorer_tokens if last else 0,
        "nodes": last.nodes if last else 0,
        "seconds": model.seconds,
    }
    limits = {k: v for k in spent if isinstance(v := config.get(k), int | float) and v > 0}
    if not limits:
        return None
    words = {k: _spent(k, spent[k], limit) for k, limit in limits.items()}
    bar = (width - sum(len(k) + cell_len(w) + 4 for k, w in words.items())) // len(words)
    line = Text()
    for name, limit in limits.items():
        line.append(name + " ", style=_DIM)
        if bar >= 4:
            line.append_text(_bar(spent[name], limit, min(bar, 24), glyphs))
            line.append(" ")
        line.append(words[name] + "  ")
    line.rstrip()
    return _fit(line, width)


def _spent(name: str, value: float, limit: float) -> str:
    return f"{value:.1f}/{limit:g}" if name == "seconds" else f"{value:,.0f}/{limit:,}"


def _bar(value: float, total: float, width: int, glyphs: Glyphs) -> Text:
    share = min(max(value / total, 0.0), 1.0) if total else 0.0
    full = round(share * width)
    return Text.assemble((glyphs.full * full, "cyan"), (glyphs.rest * (width - full), _DIM))


def _small_bar(value: float | None, width: int, glyphs: Glyphs) -> str:
    if value is None or value != value:
        return " " * width
    steps = len(glyphs.bars)
    eighths = round(min(max(value, 0.0), 1.0) * width * steps)
    bar = glyphs.bars[-1] * (eighths // steps) + (glyphs.bars[eighths % steps - 1] if eighths % steps else "")
    return bar.ljust(width)


def _spark(history: list[int], width: int, glyphs: Glyphs) -> str:
    history = history[-width:]
    top = max(history, default=0) or 1
    levels = len(glyphs.spark) - 1
    return "".join(glyphs.spark[round(levels * v / top)] for v in history)


def _ratio(logical: int, physical: int) -> str | None:
    return f"{logical / physical:.1f}x" if physical and logical > physical else None


def _pair(name: str, value: str, width: int, style: str = "") -> Text:
    return Text.assemble((f"{name} ", _DIM), " " * max(0, width - 3 - len(name) - cell_len(value)), (value, style))


def _beside(left: list[Text], right: list[Text], width: int, glyphs: Glyphs) -> list[Text]:
    lines = []
    for i in range(max(len(left), len(right))):
        line = _fit(left[i].copy() if i < len(left) else Text(), width - _SIDE - 3)
        line.append(f" {glyphs.edge} ", style=_DIM)
        line.append_text(right[i] if i < len(right) else Text())
        lines.append(line)
    return lines


def _fit(text: Text, width: int) -> Text:
    """`text` in exactly `width` cells."""
    width = max(width, 0)
    if text.cell_len > width:
        text.truncate(width, overflow="ellipsis")
    text.pad_right(width - text.cell_len)
    text.no_wrap, text.end = True, "\n"
    return text


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def _ending(reason: str) -> str:
    return "done: " + safe_line(reason, 40)
