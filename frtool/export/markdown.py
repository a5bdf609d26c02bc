"""A page of Markdown: the question, the answer, the reasons, the figures, the tree."""

from __future__ import annotations

import re

from frtool.view.glyphs import UNICODE, bytes_text, number
from frtool.view.report import reason_text
from frtool.view.rows import tree_lines
from frtool.view.safe import safe_line, safe_text

from .recorded import RecordedSearch, finished_model

_WIDTH = 100


def markdown(search: RecordedSearch, limit: int) -> str:
    """The page, its tree folded to `limit` lines."""
    model, ended = finished_model(search), search.ended
    best = model.nodes.get(ended.best) if ended.best is not None else None
    parts = ["# Search", _fenced(search.run.prompt), "## Answer"]
    if ended.answer is None:
        parts.append("No answer.")
    else:
        verdict = {True: "Verified.", False: "**Refused by the verifier.**", None: "Not verified."}[ended.verified]
        parts += [_fenced(ended.answer), verdict]
    if search.note:
        parts.append(f"Note: {search.note}.")
    if best is not None and best.parent is not None:
        parts.append("## Steps")
        for i, step in enumerate(best.path()[1:], start=1):
            score = f", score {number(step.reward).strip()}" if step.reward is not None else ""
            parts.append(f"Step {i}{score}:\n\n{_fenced(step.text)}")
    parts += ["## Figures", _figures(search), "## Tree"]
    lines = (line.plain.rstrip() for line in tree_lines(model, _WIDTH, limit, UNICODE))
    parts.append(_fenced("\n".join(lines)))
    return "\n\n".join(parts) + "\n"


def _figures(search: RecordedSearch) -> str:
    run, ended = search.run, search.ended
    where = " ".join(str(run.model[k]) for k in ("device", "dtype") if run.model.get(k))
    rows = [
        ("algorithm", str(run.config.get("algorithm", ""))),
        ("model", str(run.model.get("name") or run.config.get("model", ""))),
        ("on", where),
        ("seed", str(run.config.get("seed", ""))),
        ("ended because", reason_text(ended.reason)),
        ("seconds", f"{ended.seconds:.1f}"),
        ("tokens sampled", f"{ended.policy_tokens:,}"),
        ("tokens scored", f"{ended.scorer_tokens:,}"),
        ("tokens reused", f"{max(0, search.model.reused - ended.recomputed_tokens - ended.restored_tokens):,}"),
        ("tokens copied back", f"{ended.restored_tokens:,}" if ended.restored_tokens else ""),
        ("tokens read again", f"{ended.recomputed_tokens:,}" if ended.recomputed_tokens else ""),
        ("nodes", f"{ended.nodes:,}"),
        ("finished paths", f"{ended.terminals:,}"),
        ("paths that agree", f"{ended.votes:,}"),
        ("score", number(ended.reward).strip()),
        ("KV peak", bytes_text(ended.kv_peak_bytes)),
        ("KV peak without sharing", bytes_text(ended.kv_unshared_peak_bytes)),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in rows if value)])


def _cell(text: str) -> str:
    """One line of text with everything that Markdown reads as syntax escaped."""
    return re.sub(r"([\\`*_{}\[\]()<>#+!|~&-])", r"\\\1", safe_line(text, 200))


def _fenced(text: str) -> str:
    """`text` verbatim: between fences longer than any in it."""
    body = safe_text(text).strip("\n")
    longest = max((len(run) for run in re.findall(r"`+", body)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{body}\n{fence}"
