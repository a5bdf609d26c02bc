"""Reading the prompt into the root of the tree."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from frtool.errors import UsageError
from frtool.search.events import ROOT_ID

from .batch import DecodeBatch
from .flight import nan_error
from .rows import Kept
from .shortage import shortage, told_as_shortage
from .steps import tail

if TYPE_CHECKING:
    from frtool.models.load import LoadedModel

    from .root import Root


def check_prompt(loaded: LoadedModel, tokens: int, positions: int) -> None:
    """Raise UsageError unless the prompt has tokens and leaves at least one of `positions` to an answer."""
    if not tokens:
        raise UsageError("the prompt has no tokens")
    if tokens >= positions:
        raise UsageError(
            f"the prompt has {tokens:,} tokens, {loaded.name} reads at most {loaded.max_positions:,} "
            "and needs room for an answer",
            hint="shorten the prompt",
        )


@torch.inference_mode()
def read_prompt(
    root: Root,
    branch: int,
    prompt: list[int],
    read: int,
    batch: DecodeBatch,
    chunk: int,
    on_prefill: Callable[[int], None] | None = None,
) -> Kept:
    """Run the model over the prompt, `chunk` tokens at a time, and return the node of the root. Where the device has no
    memory for a chunk, they become half as long.

    `branch` holds the first `read` tokens already, fewer than all, and is freed when this fails. Raises FrtoolError for
    NaN, OutOfMemory where not even one token can be read.
    """
    forest, allocator = root.forest, root.forest.allocator
    logits = torch.empty(0)
    try:
        while read < len(prompt):
            tokens = prompt[read : read + chunk]
            allocator.append(branch, len(tokens))
            try:
                logits = batch.forward([branch], [len(tokens)], tokens, [len(tokens) - 1])[0]
            except torch.OutOfMemoryError as error:
                chunk = len(tokens) // 2
                if not chunk:
                    raise shortage(error, f"a prompt of {len(prompt)} tokens") from None
                whole = branch
                branch = allocator.fork(whole, read).branch_id
                allocator.free_branch(whole)
                continue
            read += len(tokens)
            if on_prefill is not None:
                on_prefill(read)
        if bool(logits.isnan().any()):
            raise nan_error("the prompt")
        with told_as_shortage("the logits of the prompt"):
            logits = logits.to(forest.loaded.dtype, copy=True)
    except BaseException:
        allocator.free_branch(branch)
        raise
    return Kept(
        id=ROOT_ID,
        parent=None,
        tokens=prompt,
        length=len(prompt),
        tail=tail(forest.detokenizer, prompt),
        logits=logits,
        branch_id=branch,
    )
