"""Scores by a process reward model of its own, which reads each new step once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from frtool.engine.flight import nan_error
from frtool.errors import FrtoolError, UsageError
from frtool.kernels.allocator import OutOfBlocks
from frtool.search.protocols import OutOfMemory, Step
from frtool.search.tree import Node, SearchTree

from .layout import PathLayout, common_prefix
from .logistic import logistic
from .preset import RewardPreset
from .reading import PASS_TOKENS, Reading
from .reward_pool import Asked, RewardPool

if TYPE_CHECKING:
    from frtool.models.load import LoadedModel


@dataclass(slots=True, eq=False)
class _Held:
    """A path whose KV is in the pool, up to the token where its value was read."""

    ids: list[int]
    branch_id: int


class RewardModelScorer:
    """The value of each path's last step, in [0, 1], by a process reward model and its preset.

    The model keeps the tree a second time, in a KV pool of its own. A path is laid out and tokenized whole, and forks
    the branch of its nearest ancestor in the pool where the two begin to differ; only the tokens from there on are
    read. So a value never depends on what the pool holds, and neither tokens that melt across steps nor templates that
    rewrite the end of a conversation can falsify it. All steps of one `score` call share forward passes.

    A node's branch is kept while the node is open. At the start of the next call those of nodes that are terminal,
    expanded, closed or pruned are freed: no child of theirs can come, and the branches of their children hold the
    blocks that they share. When blocks run out, the branches longest unused go first; they are read again when needed.
    A path longer than the model reads is worth 0.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        preset: RewardPreset,
        question: str,
        *,
        spend: Callable[[int], None] = lambda tokens: None,
        num_blocks: int | None = None,
        block_size: int | None = None,
        expected_tokens: int | None = None,
        pool: RewardPool | None = None,
    ) -> None:
        """`loaded` has the preset's head. `spend` is told of the tokens that each pass reads.

        `pool` is one that others use too; then `clear` must follow the search. Without it the scorer makes its own, of
        `num_blocks`, by default a share of the free memory and no more than the question and `expected_tokens` take.
        Raises ModelError where the preset does not fit the tokenizer, UsageError for a pool or a model too small for
        the question.
        """
        self.name = f"prm:{preset.name}"
        self.tokens = 0
        """Read so far."""
        self.too_long = 0
        """Paths that the model could not read."""
        self.spend = spend
        self._loaded = loaded
        self._preset = preset
        self._layout = PathLayout(preset, loaded, question)
        root = self._layout.root
        if len(root) >= loaded.max_positions:
            raise UsageError(
                f"the question has {len(root):,} tokens, and {loaded.name} reads at most {loaded.max_positions:,}",
                hint="shorten the prompt",
            )
        if pool is None:
            expected = None if expected_tokens is None else len(root) + expected_tokens
            pool = RewardPool(loaded, num_blocks=num_blocks, block_size=block_size, expected_tokens=expected)
        self._pool = pool
        self.allocator = pool.allocator
        least = -(-len(root) // self.allocator.block_size) + 1
        if self.allocator.num_blocks < least:
            raise UsageError(
                f"the reward model's KV pool of {self.allocator.num_blocks} blocks is too small: "
                f"the question alone needs {least}",
                hint="free memory, or use a smaller --reward-model",
            )
        pool.holders.append(self)
        self._root: _Held | None = None
        self._held: dict[Node, _Held] = {}  # longest unused first
        self._asked: list[Asked] = []
        self._answers: dict[Node, float] = {}
        self.failure: Exception | None = None
        """Why the last answer could not be had."""

    def ask(self, nodes: Sequence[Node], tree: SearchTree) -> None:
        """What the next `score` is for, so that the pool's next `answer` reads it besides what others ask."""
        if self not in self._pool.holders:  # it was cleared
            self._pool.holders.append(self)
        self._leave()
        self._answers.clear()
        self._asked = []
        for node in nodes:
            ids = self._layout.ids([at.text for at in node.path()[1:]])
            if len(ids) > self._loaded.max_positions:
                self.too_long += 1
                self._answers[node] = 0.0
            else:
                self._asked.append(Asked(self, node, ids))
        if self not in self._pool.asking:
            self._pool.asking.append(self)

    def score(self, nodes: Sequence[Node], steps: Sequence[Step], tree: SearchTree) -> list[float]:
        """Raises OutOfMemory where a path does not fit into the empty pool, FrtoolError for NaN."""
        if self.failure is None and not all(node in self._answers for node in nodes):
            if self not in self._pool.asking:
                self.ask(nodes, tree)
            self._pool.answer()
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        return [self._answers[node] for node in nodes]

    def warm(self, nodes: Sequence[Node], tree: SearchTree) -> None:
        """Read the question, and the paths to nodes that were scored in another process, at nobody's cost."""
        spend, tokens = self.spend, self.tokens
        self.spend = lambda tokens: None
        try:
            if self._root is None and not self._held:
                self._read_question()
            self.score(nodes, [], tree)
        finally:
            self.spend, self.tokens = spend, tokens

    def clear(self) -> None:
        """Free everything, the question too, and leave the pool."""
        for members in (self._pool.holders, self._pool.asking):
            if self in members:
                members.remove(self)
        self._answers.clear()
        for held in self._held.values():
            self.allocator.free_branch(held.branch_id)
        self._held.clear()
        if self._root is not None:
            self.allocator.free_branch(self._root.branch_id)
            self._root = None

    # The tree of branches

    def _leave(self) -> None:
        """Free the branches of nodes that no child can follow any more."""
        for node in [node for node in self._held if node.state != "open" or node.terminal is not None]:
            self.allocator.free_branch(self._held.pop(node).branch_id)

    def fork(self, asked: Asked) -> tuple[int, int]:
        """A branch with the longest known beginning of a path but its last token, and how many tokens that is."""
        ids = asked.ids
        at = None if asked.node is None else asked.node.parent
        while at is not None and at not in self._held:
            at = at.parent
        held = self._root if at is None else self._held[at]
        if at is not None:
            self._held[at] = self._held.pop(at)
        if held is None:
            return self.allocator.alloc_branch(0).branch_id, 0
        start = min(common_prefix(held.ids, ids), len(ids) - 1)
        return self.allocator.fork(held.branch_id, start).branch_id, start

    def evict(self, blocks: int) -> bool:
        """Free branches, longest unused first and the question last, until `blocks` are free; whether any was freed."""
        evicted = False
        while self.allocator.free_blocks < blocks and (self._held or self._root is not None):
            if self._held:
                held = self._held.pop(next(iter(self._held)))
            else:
                assert self._root is not None
                held, self._root = self._root, None
            self.allocator.free_branch(held.branch_id)
            evicted = True
        return evicted

    # Reading

    def missing(self) -> list[Asked]:
        """The question, where nothing of it is in KV. One that is longer than a pass is read at once."""
        ids = self._layout.root
        if not ids or self._root is not None or self._held:
            return []
        if len(ids) <= PASS_TOKENS:
            return [Asked(self, None, ids)]
        try:
            self._read_question()
        except (OutOfMemory, FrtoolError) as error:
            self.failure = error
        return []

    def asked(self) -> list[Asked]:
        asked, self._asked = self._asked, []
        return asked

    def take(self, asked: Asked, reading: Reading, value: float) -> None:
        node = asked.node
        if value != value:
            where = "the question" if node is None else f"node {node.id}"
            self.failure = nan_error(f"{where}, in the reward model {self._loaded.name}")
            self.allocator.free_branch(reading.branch_id)
        elif node is None:
            self._root = _Held(reading.ids, reading.branch_id)
        else:
            self._answers[node] = value
            if node.terminal is not None or node in self._held:
                self.allocator.free_branch(reading.branch_id)
            else:
                self._held[node] = _Held(reading.ids, reading.branch_id)

    def values(self, out: torch.Tensor) -> torch.Tensor:
        """[R] in [0, 1], of float32 logits [R, vocab] or of the head's output [R, classes]."""
        preset = self._preset
        if preset.head == "lm":
            return out[:, list(self._layout.labels)].softmax(-1)[:, 0]
        if preset.head == "2class":
            return out.softmax(-1)[:, 1]
        scaled = out[:, 0] / preset.scale
        return logistic(scaled if preset.squash == "sigmoid" else 2 * scaled)  # (1 + tanh(x)) / 2 is that of 2 x

    def _read_question(self) -> None:
        ids = self._layout.root
        if not ids:
            return
        branch_id = self.allocator.alloc_branch(0).branch_id
        try:
            for start in range(0, len(ids), PASS_TOKENS):
                part = ids[start : start + PASS_TOKENS]
                self._grow(branch_id, len(part))
                out = self._pool.batch.forward([branch_id], [len(part)], part, [len(part) - 1])
                self.count(len(part))
                if bool(out.isnan().any()):  # this also waits for the pass, whose input the next one overwrites
                    raise nan_error(f"the question, in the reward model {self._loaded.name}")
        except OutOfBlocks as error:
            self.allocator.free_branch(branch_id)
            raise OutOfMemory(
                f"the question needs {error.needed} more KV blocks of the reward model, {error.free} are free"
            ) from None
        except BaseException:
            self.allocator.free_branch(branch_id)
            raise
        self._root = _Held(ids, branch_id)

    def _grow(self, branch_id: int, tokens: int) -> None:
        while True:
            try:
                return self.allocator.append(branch_id, tokens)
            except OutOfBlocks as error:
                if not self._pool.evict(error.needed):
                    raise

    def count(self, tokens: int) -> None:
        self.tokens += tokens
        self.spend(tokens)
