"""The tree as a graph for other tools: Mermaid and Graphviz."""

from __future__ import annotations

import re

from frtool.view.model import TreeModel

from .outline import Entry, caption, kind, outline

_WIDTH = 60
# Stroke, fill and text: the same hues as in the terminal, on a light ground of their own.
_COLOURS = {
    "best": ("#15803d", "#dcfce7", "#14532d"),
    "right": ("#15803d", "#f0fdf4", "#14532d"),
    "wrong": ("#b91c1c", "#fef2f2", "#7f1d1d"),
    "finished": ("#0e7490", "#ecfeff", "#164e63"),
    "pruned": ("#a1a1aa", "#fafafa", "#71717a"),
    "more": ("#d4d4d8", "#ffffff", "#71717a"),
    "step": ("#71717a", "#ffffff", "#18181b"),
}


def mermaid(model: TreeModel, limit: int) -> str:
    """A Mermaid flowchart of at most `limit` nodes."""
    lines = ["flowchart TD"]
    for entry in outline(model, limit):
        label = "<br/>".join(_mermaid_text(line) for line in caption(entry.row, _WIDTH))
        lines.append(f'  n{entry.index}["{label}"]:::{kind(entry.row)}')
        if entry.parent is not None:
            lines.append(f"  n{entry.parent} {'==>' if entry.row.best else '-->'} n{entry.index}")
    for name, (stroke, fill, text) in _COLOURS.items():
        width = ",stroke-width:3px" if name == "best" else ""
        lines.append(f"  classDef {name} fill:{fill},stroke:{stroke},color:{text}{width}")
    return "\n".join(lines) + "\n"


def dot(model: TreeModel, limit: int) -> str:
    """A Graphviz digraph of at most `limit` nodes."""
    lines = [
        "digraph search {",
        '  node [shape=box, style="rounded,filled", fontname="Helvetica", fontsize=10];',
        '  edge [color="#a1a1aa", arrowsize=0.6];',
    ]
    lines += [_dot_line(entry) for entry in outline(model, limit)]
    return "\n".join([*lines, "}"]) + "\n"


def _dot_line(entry: Entry) -> str:
    label = "\\n".join(_dot_text(line) for line in caption(entry.row, _WIDTH))
    stroke, fill, text = _COLOURS[kind(entry.row)]
    line = f'  n{entry.index} [label="{label}", color="{stroke}", fillcolor="{fill}", fontcolor="{text}"];'
    if entry.parent is None:
        return line
    strong = f' [color="{stroke}", penwidth=2]' if entry.row.best else ""
    return f"{line}\n  n{entry.parent} -> n{entry.index}{strong};"


def _mermaid_text(text: str) -> str:
    """Everything that Mermaid or the Markdown and HTML that it makes could read as syntax, as character codes."""
    return re.sub(r"[^\w ,.+=()/?-]", lambda m: f"#{ord(m.group())};", text)


def _dot_text(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
