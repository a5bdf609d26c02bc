"""What a finished search gives to stdout, and its exit status."""

from __future__ import annotations

from typing import Any

from frtool import __version__
from frtool.search.events import Ended
from frtool.view.model import TreeModel
from frtool.view.record import tree_record

from .errors import FAILED, SOLVED, UNSOLVED


def status(ended: Ended | None) -> int:
    """0 answered; 1 failed; 3 no answer, or one that the verifier refuses; 130 interrupted."""
    if ended is None or ended.reason.startswith("failed"):
        return FAILED
    if ended.reason == "interrupted":
        return 130
    return UNSOLVED if ended.answer is None or ended.verified is False else SOLVED


def result_record(model: TreeModel) -> dict[str, Any]:
    """The JSON object of `--json`. Everything under `tree` repeats exactly with the seed; clocks stand outside it."""
    ended = model.ended or Ended("failed: not begun", None, None)
    best = model.nodes.get(ended.best) if ended.best is not None else None
    return {
        "frtool": __version__,
        "answer": ended.answer,
        "verified": ended.verified,
        "score": ended.reward,
        "votes": ended.votes,
        "reason": ended.reason,
        "best": ended.best,
        "steps": [node.text for node in best.path()[1:]] if best is not None else [],
        "nodes": ended.nodes,
        "terminals": ended.terminals,
        "tokens": {
            "prompt": ended.prompt_tokens,
            "policy": ended.policy_tokens,
            "scorer": ended.scorer_tokens,
            "reused": max(0, model.reused - ended.recomputed_tokens - ended.restored_tokens),
            "recomputed": ended.recomputed_tokens,
            "restored": ended.restored_tokens,
        },
        "seconds": ended.seconds,
        "kv": {
            "peak_blocks": ended.kv_peak_blocks,
            "peak_bytes": ended.kv_peak_bytes,
            "unshared_peak_bytes": ended.kv_unshared_peak_bytes,
        },
        "model": model.run.model if model.run else {},
        "config": model.config,
        "tree": tree_record(model),
    }
