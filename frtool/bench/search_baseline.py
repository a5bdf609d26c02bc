"""The steps of a search by transformers alone: one `generate` for every step, its path read anew."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from frtool.models.load import LoadedModel
from frtool.search.events import NodeAdded

# Steps that are generated for each algorithm, evenly spread over those of the search: all would take minutes.
SAMPLE = 32


@dataclass(frozen=True, slots=True)
class Branch:
    """What a step continues, and how many tokens it has."""

    path: list[int]
    new: int


def branches_of(nodes: Sequence[NodeAdded], prompt: list[int]) -> list[Branch]:
    """The steps of a search in the order in which they were told."""
    below = {node.id: node.token_ids for node in nodes}
    branches = []
    for node in nodes:
        ids, path = node.id.split("."), list(prompt)
        for depth in range(2, len(ids)):
            path += below[".".join(ids[:depth])]
        branches.append(Branch(path, max(len(node.token_ids), 1)))
    return branches


@torch.inference_mode()
def hugging_face(loaded: LoadedModel, grown: dict[str, list[Branch]]) -> dict[str, float]:
    """Tokens a second over a sample of each algorithm's steps, by the plain model with sdpa attention, sampling."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        loaded.source, dtype=loaded.dtype, attn_implementation="sdpa", local_files_only=True
    )
    model.to(loaded.device).eval()
    rates = {}
    for name, branches in grown.items():
        sample = branches[:: max(len(branches) // SAMPLE, 1)][:SAMPLE]
        _generate(model, sample[0])  # the first call pays for what the others find ready
        started = time.perf_counter()
        for branch in sample:
            _generate(model, branch)
        rates[name] = sum(branch.new for branch in sample) / (time.perf_counter() - started)
    return rates


def _generate(model: Any, branch: Branch) -> None:
    ids = torch.tensor([branch.path], device=model.device)
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        max_new_tokens=branch.new,
        min_new_tokens=branch.new,
        pad_token_id=0,
    )
