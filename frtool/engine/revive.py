"""Nodes that were grown in an earlier process: reading their paths again when something is to grow there."""

from __future__ import annotations

import weakref
from itertools import chain
from typing import TYPE_CHECKING

import torch

from frtool.kernels.allocator import OutOfBlocks
from frtool.search.protocols import OutOfMemory, Step
from frtool.search.resume import Mismatch

from .batch import DecodeBatch
from .flight import nan_error
from .rows import Kept
from .shortage import told_as_shortage
from .steps import StepText

if TYPE_CHECKING:
    from .root import Root

_TOKENS = 64
"""That the buffers of a pass hold at first; they grow with the path."""


class Reviver:
    """Makes nodes from recorded steps, and gives them KV and logits.

    On a CPU a path that is read at once gives the bits that it gave token by token, as every row of a pass does.
    """

    def __init__(self, root: Root) -> None:
        self._root: Root = weakref.proxy(root)  # so that nothing keeps the pool of a search that is over
        self._batch: DecodeBatch | None = None

    def make(self, step: Step) -> Kept:
        """The node of a recorded step; its parent is kept. Raises Mismatch where its text cannot come from
        this model's tokenizer."""
        root = self._root
        parent = root.holdings.kept[step.parent]
        text = StepText(root.forest.detokenizer, root.forest.options.delimiter, parent.tail)
        name = f"{step.parent}.{step.ordinal}"
        if any(not 0 <= token < root.forest.loaded.vocab_size for token in step.ids):
            raise Mismatch(f"step {name} holds tokens that {root.forest.loaded.name} lacks")
        for token in step.ids:
            text.push(token)
        if text.text != step.text:
            raise Mismatch(f"the tokens of step {name} give another text than was recorded")
        return Kept(
            id=name,
            parent=parent,
            tokens=list(step.ids),
            length=parent.length + len(step.ids),
            tail=text.tail,
            logits=None,
            branch_id=None,
            unread=step.finish == "step",
        )

    @torch.inference_mode()
    def read(self, node: Kept) -> None:
        """Read the path to a node from where its KV is missing. Raises OutOfMemory, and FrtoolError for NaN."""
        root, allocator = self._root, self._root.forest.allocator
        while True:
            source, start = self._nearest(node)
            blocks = -(-(node.length - start) // allocator.block_size) + 1
            if allocator.free_blocks >= blocks or not root.forest.evict(blocks):
                break
        if self._batch is None:
            self._batch = DecodeBatch(root.forest.loaded, allocator, _TOKENS)
        tokens = _path_tokens(node)[start:]
        branch = (allocator.alloc_branch(0) if source is None else allocator.fork(source, start)).branch_id
        chunk = root.forest.options.prefill_chunk
        logits = torch.empty(0)
        try:
            for at in range(0, len(tokens), chunk):
                part = tokens[at : at + chunk]
                allocator.append(branch, len(part))
                with told_as_shortage(f"reading node {node.id} again"):
                    logits = self._batch.forward([branch], [len(part)], part, [len(part) - 1])[0]
            if bool(logits.isnan().any()):
                raise nan_error(f"node {node.id}")
        except OutOfBlocks as error:
            allocator.free_branch(branch)
            raise OutOfMemory(
                f"node {node.id} needs {error.needed} more KV blocks to be read again, {error.free} are free"
            ) from None
        except BaseException:
            allocator.free_branch(branch)
            raise
        root.recomputed_tokens += len(tokens)
        node.logits = logits.to(root.forest.loaded.dtype, copy=True)
        node.branch_id = branch
        node.unread = False

    def _nearest(self, node: Kept) -> tuple[int | None, int]:
        """The branch that holds most of the path, and how many of its tokens to share: one is left to be read."""
        above = {id(at): at.length for at in _upward(node)}
        found: tuple[int | None, int] = (None, 0)
        for holder in self._root.holdings.kept.values():
            if holder.branch_id is None:
                continue
            common = next((above[id(at)] for at in _upward(holder) if id(at) in above), 0)
            common = min(common, node.length - 1)
            if common > found[1]:
                found = holder.branch_id, common
        return found


def _upward(node: Kept) -> list[Kept]:
    nodes = []
    at: Kept | None = node
    while at is not None:
        nodes.append(at)
        at = at.parent
    return nodes


def _path_tokens(node: Kept) -> list[int]:
    return list(chain.from_iterable(at.tokens for at in reversed(_upward(node))))
