"""What a search found, for a program."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from frtool.search.events import Ended
from frtool.view.model import TreeModel

if TYPE_CHECKING:
    from .question import Question


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The answer of one search and how it came about."""

    answer: str | None
    verified: bool | None
    """The verifier's verdict; None where none ran."""
    score: float | None
    """The scorer's value of the answer's path, in [0, 1]."""
    reason: str
    """Why the search ended: 'finished', 'solved', 'tokens', 'nodes', 'steps', 'seconds', 'kv', 'converged', …"""
    steps: tuple[str, ...]
    """Texts of the answer's path."""
    answers: Mapping[str, int]
    """Every answer with the number of finished paths that gave it, the most frequent first."""
    usage: Ended
    """The counters: `policy_tokens`, `scorer_tokens`, `prompt_tokens`, `nodes`, `seconds`, `kv_peak_bytes`, …"""
    config: Mapping[str, Any]
    """The resolved configuration."""
    tree: TreeModel = field(repr=False)
    """Every node, by id, as the events told of it."""
    question: Question | None = None
    """Which of many problems it was."""
    error: Exception | None = None
    """Why this problem of many failed; a search of its own raises it."""


def search_result(
    tree: TreeModel, ended: Ended, question: Question | None = None, error: Exception | None = None
) -> SearchResult:
    """The result of the search that `tree` has followed to its end."""
    best = tree.nodes.get(ended.best) if ended.best is not None else None
    found = Counter(node.answer for node in tree.walk() if node.terminal is not None and node.answer is not None)
    return SearchResult(
        answer=ended.answer,
        verified=ended.verified,
        score=ended.reward,
        reason=ended.reason,
        steps=tuple(node.text for node in best.path()[1:]) if best is not None else (),
        answers=dict(found.most_common()),
        usage=ended,
        config=tree.config,
        tree=tree,
        question=question,
        error=error,
    )
