"""The counters: below the tree in three lines, or beside it as a column."""

from __future__ import annotations

from frtool.search.events import Tick

from .glyphs import BEST, DIM, Glyphs, bytes_text, number, verdict
from .line import Line, cells
from .model import TreeModel
from .safe import safe_line


def counters(model: TreeModel, width: int, glyphs: Glyphs) -> list[Line]:
    """The answer so far, memory and speed, in three lines; nothing after the end, when the report says it all."""
    if model.ended is not None:
        return []
    lines = [_best_line(model, glyphs)]
    tick = model.tick
    if tick is not None:
        kv = Line(("KV    ", DIM), glyphs.bar(tick.blocks_used, tick.blocks_total, 8))
        kv.add(f" {tick.blocks_used:,}/{tick.blocks_total:,} blocks")
        kv.add(f"{glyphs.dot}{tick.physical_tokens:,} tokens, {tick.logical_tokens:,} unshared")
        if ratio := _ratio(tick.logical_tokens, tick.physical_tokens):
            kv.add(f" ({ratio} less)", "cyan")
        speed = Line(("batch ", DIM), glyphs.bar(tick.rows, tick.capacity, 8))
        speed.add(f" {tick.rows}/{tick.capacity} rows")
        speed.add(f"{glyphs.dot}{model.tokens_per_second:,.0f} tokens/s", "cyan")
        if tick.note:
            speed.add(glyphs.dot).add(safe_line(tick.note), "yellow")
        else:
            speed.add(f"{glyphs.dot}{tick.forks:,} forks, {tick.frees:,} frees")
        lines += [kv, speed]
    return [line.fit(width, glyphs.more) for line in lines]


def side_panel(model: TreeModel, width: int, glyphs: Glyphs) -> list[Line]:
    """The same counters as a column, with the history of the pool."""
    lines = [_heading("answer" if model.ended else "answer so far"), *_answer_lines(model, width, glyphs), Line()]
    tick, ended = model.tick, model.ended
    counts = ended or tick
    if tick is not None:
        lines += _memory_lines(model, tick, width, glyphs)
        if ended is None:
            lines += [
                _heading("decode batch"),
                glyphs.bar(tick.rows, tick.capacity, width),
                _pair("live rows", f"{tick.rows} of {tick.capacity}", width),
                _pair("speed", f"{model.tokens_per_second:,.0f} tokens/s", width, "bold cyan"),
                Line(),
            ]
    if counts is not None:
        lines += [
            _heading("search"),
            _pair("steps, nodes", f"{model.steps:,}, {counts.nodes:,}", width),
            _pair("finished paths", f"{model.terminals:,}", width),
            _pair("tokens sampled", f"{counts.policy_tokens:,}", width),
            _pair("tokens scored", f"{counts.scorer_tokens:,}", width),
        ]
        if tick is not None and tick.note:
            lines.append(Line((safe_line(tick.note), "yellow")))
        lines.append(Line())
    info = model.run.model if model.run else {}
    if info.get("scorer"):
        verifier = "none" if info.get("verifier") is None else safe_line(str(info["verifier"]))
        role = "" if verifier == "none" else ", steers" if model.config.get("steer") else ", only grades"
        lines += [
            _heading("judges"),
            _pair("scorer", safe_line(str(info["scorer"])), width),
            _pair("verifier", verifier + role, width),
            Line(),
        ]
    if info.get("attention"):
        lines += [_heading("attention"), Line(safe_line(str(info["attention"])))]
        if info.get("attention_why"):
            lines.append(Line((safe_line(str(info["attention_why"])), DIM)))
        if info.get("passes"):
            lines.append(Line((safe_line(f"passes: {info['passes']}"), DIM)))
    return [line.fit(width, glyphs.more) for line in lines]


def _memory_lines(model: TreeModel, tick: Tick, width: int, glyphs: Glyphs) -> list[Line]:
    ended = model.ended
    if ended is not None:
        blocks, held, unshared = ended.kv_peak_blocks, ended.kv_peak_bytes, ended.kv_unshared_peak_bytes
        words = [bytes_text(held), bytes_text(unshared)]
    else:
        blocks, held, unshared = tick.blocks_used, tick.physical_tokens, tick.logical_tokens
        words = [f"{held:,} tokens", f"{unshared:,} tokens"]
    ratio = _ratio(unshared, held)
    return [
        _heading("KV memory at its peak" if ended else "KV memory"),
        glyphs.bar(blocks, tick.blocks_total, width),
        Line(f"{blocks:,} of {tick.blocks_total:,} blocks"),
        Line((glyphs.spark(list(model.blocks), width), "cyan")),
        _pair("held", words[0], width),
        _pair("without sharing", words[1], width),
        _pair("sharing saves", ratio or "nothing yet", width, "bold cyan" if ratio else ""),
        _pair("forks, frees", f"{tick.forks:,}, {tick.frees:,}", width),
        Line(),
    ]


def _best_line(model: TreeModel, glyphs: Glyphs) -> Line:
    line = Line(("best  ", DIM))
    node = model.best()
    if node.parent is None:
        return line.add(f"nothing yet, {_count(len(model.pending), 'step')} growing", DIM)
    if node.answer is not None:
        line.add(safe_line(node.answer), BEST)
    else:
        line.add("no answer yet, on a line of " + _count(node.depth, "step"))
    if node.reward is not None:
        line.add(f"{glyphs.dot}score {number(node.reward).strip()}")
    if node.verified is not None:
        line.add(" ").extend(verdict(node.verified, glyphs))
    line.add(f"{glyphs.dot}{_count(model.terminals, 'finished path')}")
    return line


def _answer_lines(model: TreeModel, width: int, glyphs: Glyphs) -> list[Line]:
    node = model.best()
    if node.answer is None:
        return [Line("none yet")]
    lines = [Line((safe_line(node.answer), BEST))]
    if node.reward is not None:
        lines.append(_pair("score", number(node.reward).strip(), width))
    if node.verified is not None:
        lines.append(verdict(node.verified, glyphs))
    return lines


def _ratio(logical: int, physical: int) -> str | None:
    return f"{logical / physical:.1f}x" if physical and logical > physical else None


def _pair(name: str, value: str, width: int, style: str = "") -> Line:
    return Line((f"{name} ", DIM), " " * max(0, width - 1 - len(name) - cells(value)), (value, style))


def _heading(words: str) -> Line:
    return Line((words, DIM))


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
