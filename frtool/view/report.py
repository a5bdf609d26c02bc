"""What stands on stderr when a search is over: the reasons, the verdict, what it cost."""

from __future__ import annotations

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from .glyphs import UNICODE, Glyphs, bytes_text, number
from .model import TreeModel, ViewNode
from .safe import safe_line, safe_text

_REASONS = {
    "solved": "a verified answer was found",
    "steps": "the step budget is spent",
    "memory": "the KV pool was full; --kv-memory gives it more",
    "tokens": "the token budget is spent",
    "nodes": "the node budget is spent",
    "seconds": "the time is up",
    "exhausted": "the whole tree was searched",
    "finished": "the algorithm has finished",
    "converged": "the answers have converged",
    "answers": "enough paths have finished",
    "simulations": "all simulations have run",
    "accepted": "a path of the accepted value was found",
    "interrupted": "interrupted",
}


def report(model: TreeModel, glyphs: Glyphs = UNICODE) -> list[RenderableType]:
    """The derivation along the best path, then the verdict and the cost. Empty before the end."""
    ended = model.ended
    if ended is None:
        return []
    blocks: list[RenderableType] = _derivation(model.best()) if ended.best is not None else []
    return [*blocks, _verdict(model, glyphs), _cost(model, glyphs), _growth(model, glyphs), _memory(model, glyphs)]


def reason_text(reason: str) -> str:
    return _REASONS.get(reason) or safe_line(reason, 200)


def _derivation(node: ViewNode) -> list[RenderableType]:
    steps = node.path()[1:]
    if not steps:
        return []
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right", style="dim", no_wrap=True)
    table.add_column(style="green", no_wrap=True)
    table.add_column(overflow="fold")
    for i, step in enumerate(steps, start=1):
        table.add_row(str(i), number(step.reward), Text(safe_text(step.text).strip()))
    return [table]


def _verdict(model: TreeModel, glyphs: Glyphs) -> Text:
    ended = model.ended
    assert ended is not None
    line = Text()
    answer = safe_line(ended.answer or "", 60)  # it stands whole on stdout
    if ended.answer is None:
        line.append("no answer", style="bold yellow")
    elif ended.verified is False:
        line.append(f"{glyphs.wrong} not solved", style="bold red").append(", best try ")
        line.append(answer, style="bold")
    elif ended.verified:
        line.append(f"{glyphs.right} verified ", style="bold green").append(answer, style="bold")
    else:
        line.append("answer ", style="bold").append(answer, style="bold")
    if ended.reward is not None:
        line.append(f"{glyphs.dot}score {ended.reward:.3f}")
    if ended.votes and ended.terminals > 1:
        line.append(f"{glyphs.dot}{ended.votes:,} of {ended.terminals:,} paths agree")
    if model.config.get("steer"):
        line.append(f"{glyphs.dot}steered by the verifier", style="yellow")
    return line


def _cost(model: TreeModel, glyphs: Glyphs) -> Text:
    ended = model.ended
    assert ended is not None
    words = f"{reason_text(ended.reason)}{glyphs.dot}{ended.seconds:.1f} s"
    words += f"{glyphs.dot}{ended.policy_tokens:,} tokens sampled"
    return Text(words + (f", {ended.scorer_tokens:,} scored" if ended.scorer_tokens else ""))


def _growth(model: TreeModel, glyphs: Glyphs) -> Text:
    ended = model.ended
    assert ended is not None
    finished = f"{ended.terminals:,} finished " + ("path" if ended.terminals == 1 else "paths")
    line = Text(f"{model.steps:,} steps{glyphs.dot}{ended.nodes:,} nodes{glyphs.dot}{finished}")
    reused = model.reused - ended.recomputed_tokens - ended.restored_tokens
    line.append(f"{glyphs.dot}{reused:,} tokens reused" if reused > 0 else "")
    line.append(f", {ended.restored_tokens:,} copied back" if ended.restored_tokens else "")
    return line.append(f", {ended.recomputed_tokens:,} read again" if ended.recomputed_tokens else "")


def _memory(model: TreeModel, glyphs: Glyphs) -> Text:
    ended = model.ended
    assert ended is not None
    line = Text(f"KV peak {bytes_text(ended.kv_peak_bytes)}")
    if ended.kv_unshared_peak_bytes > ended.kv_peak_bytes > 0:
        line.append(f" instead of {bytes_text(ended.kv_unshared_peak_bytes)} unshared, ")
        line.append(f"{ended.kv_unshared_peak_bytes / ended.kv_peak_bytes:.1f}x less", style="cyan")
    return line
