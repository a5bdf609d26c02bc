"""The whole picture: header, tree, counters. What a model wrote passes `safe_line` on its way in."""

from __future__ import annotations

from .glyphs import ASCII, DIM, UNICODE, Glyphs
from .line import Line, cells
from .model import TreeModel
from .panel import counters, side_panel
from .rows import tree_lines
from .safe import safe_line

WIDE = 110
"""Columns from which the counters stand beside the tree instead of below it."""
_SIDE = 36


def draw(model: TreeModel, width: int, height: int, glyphs: Glyphs = UNICODE) -> list[Line]:
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
            line.ascii()
    return lines


def header(model: TreeModel, width: int, glyphs: Glyphs) -> list[Line]:
    """What runs, for how long, and how much of each budget is spent."""
    config, info = model.config, model.run.model if model.run else {}
    parts = [
        safe_line(str(config.get("algorithm", "search"))),
        safe_line(str(info.get("name") or config.get("model", ""))),
        " ".join(safe_line(str(info[k])).removeprefix("torch.") for k in ("device", "dtype") if info.get(k)),
        "steered by the verifier" if config.get("steer") else "",
        "resumed" if model.resumed else "",
    ]
    state = _ending(model.ended.reason) if model.ended else f"{model.seconds:.1f} s"
    title = Line(("frtool ", "bold cyan"), (parts[0], "bold"))
    title.add("".join(glyphs.dot + p for p in parts[1:] if p))
    title.fit(width - cells(state) - 1, glyphs.more)
    title.add(" " + state, "bold" if model.ended else "")
    budgets = _budgets(model, width, glyphs)
    return [title, budgets] if budgets else [title]


def _budgets(model: TreeModel, width: int, glyphs: Glyphs) -> Line | None:
    config, tick, ended = model.config, model.tick, model.ended
    last = ended or tick
    spent: dict[str, float] = {
        "tokens": last.policy_tokens + last.scorer_tokens if last else 0,
        "nodes": last.nodes if last else 0,
        "steps": model.steps,
        "seconds": model.seconds,
    }
    limits = {k: v for k in spent if isinstance(v := config.get(k), int | float) and v > 0}
    if not limits:
        return None
    words = {k: _spent(k, spent[k], limit) for k, limit in limits.items()}
    bar = (width - sum(len(k) + cells(w) + 4 for k, w in words.items())) // len(words)
    line = Line()
    for name, limit in limits.items():
        line.add(name + " ", DIM)
        if bar >= 4:
            line.extend(glyphs.bar(spent[name], limit, min(bar, 24)))
            line.add(" ")
        line.add(words[name] + "  ")
    return line.fit(width, glyphs.more)


def _spent(name: str, value: float, limit: float) -> str:
    return f"{value:.1f}/{limit:g}" if name == "seconds" else f"{value:,.0f}/{limit:,}"


def _beside(left: list[Line], right: list[Line], width: int, glyphs: Glyphs) -> list[Line]:
    lines = []
    for i in range(max(len(left), len(right))):
        line = left[i].fit(width - _SIDE - 3) if i < len(left) else Line(" " * (width - _SIDE - 3))
        line.add(f" {glyphs.edge} ", DIM)
        line.extend(right[i] if i < len(right) else Line())
        lines.append(line)
    return lines


def _ending(reason: str) -> str:
    return "done: " + safe_line(reason, 40)
