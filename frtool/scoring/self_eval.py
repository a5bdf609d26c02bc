"""Scores by the policy's own answer to a yes-or-no question behind each path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from frtool.engine.batch import DecodeBatch
from frtool.engine.flight import nan_error
from frtool.errors import ModelError, UsageError
from frtool.models.text import one_line
from frtool.search.protocols import Step
from frtool.search.tree import Node, SearchTree

from .logistic import logistic
from .reading import PASS_TOKENS, Reading, make_room, read_last

if TYPE_CHECKING:
    from frtool.engine.root import Root
    from frtool.engine.rows import Kept
    from frtool.models.load import LoadedModel

QUESTION = "Is the reasoning above correct so far? Answer with Yes or No."
_YES = ("Yes", "yes", " Yes", " yes", "YES")
_NO = ("No", "no", " No", " no", "NO")
_MARK = "frtool-path-ends-here"


class SelfEvalScorer:
    """P(yes) / (P(yes) + P(no)), summed over the ways to write the two words, where the model would answer.

    The question stands on a fork of the policy's own branch, which is freed as soon as the one token is read; the path
    itself is not read again. In a chat model it is a user's turn behind the path. All steps of one `score` call share
    forward passes, whose tokens count as the scorer's. A path that leaves the question no position is worth 0.
    """

    name = "self-eval"

    def __init__(self, loaded: LoadedModel, question: str = QUESTION) -> None:
        """Raises UsageError for a model that cannot say yes or no, ModelError where its chat template fails."""
        self._loaded = loaded
        self.query = _encode(loaded, _behind(loaded, question))
        yes, no = (_firsts(loaded, words) for words in (_YES, _NO))
        self.labels = sorted(yes - no), sorted(no - yes)
        if not all(self.labels) or not self.query or max(self.query) >= loaded.vocab_size:
            raise UsageError(f"{loaded.name} cannot be asked yes or no", hint="use --scorer logprob or reward")
        self._root: Root | None = None
        self._batch: DecodeBatch | None = None

    def attach(self, root: Root) -> None:
        """Use the branches of this root from now on."""
        self._root = root
        self._batch = DecodeBatch(self._loaded, root.forest.allocator, 64)

    @torch.inference_mode()
    def score(self, nodes: Sequence[Node], steps: Sequence[Step], tree: SearchTree) -> list[float]:
        """Raises OutOfMemory where not even one question finds room, FrtoolError for NaN."""
        assert self._root is not None, "attach comes first"
        values = [0.0] * len(nodes)
        room = self._loaded.max_positions - len(self.query)
        kept = self._root.holdings.kept
        waiting = [(index, kept[node.id]) for index, node in enumerate(nodes) if kept[node.id].length <= room]
        while waiting:
            readings = self._ask(waiting)
            for reading, value in readings:
                if value != value:
                    raise nan_error(f"the question behind node {nodes[reading.index].id}")
                values[reading.index] = value
            waiting = waiting[len(readings) :]
        return values

    def _ask(self, waiting: Sequence[tuple[int, Kept]]) -> list[tuple[Reading, float]]:
        """Answers for as many paths as one pass holds, from the first on."""
        assert self._root is not None
        assert self._batch is not None
        root, allocator = self._root, self._root.forest.allocator
        readings: list[Reading] = []
        try:
            total = 0
            for index, kept in waiting:
                readings.append(self._fork(index, kept))
                total += len(readings[-1].new)
                if total > PASS_TOKENS:
                    break
            make_room(
                allocator,
                readings,
                lambda blocks: root.holdings.evict(blocks, [row.parent for row in root.forest.rows]),
            )
            out = read_last(self._batch, readings)
            root.scorer_tokens += sum(len(reading.new) for reading in readings)
            yes, no = (out[:, ids].logsumexp(-1) for ids in self.labels)
            return list(zip(readings, logistic(yes - no).tolist(), strict=True))
        finally:
            for reading in readings:
                allocator.free_branch(reading.branch_id)

    def _fork(self, index: int, kept: Kept) -> Reading:
        """The path and the question, on a fork of what the engine holds of it."""
        assert self._root is not None
        allocator = self._root.forest.allocator
        ids = [*_path_ids(kept), *self.query]
        holder, _ = kept.anchor()
        if holder is None or holder.branch_id is None:
            return Reading(index, ids, allocator.alloc_branch(0).branch_id, 0)
        # The last token of a path that has ended may never have been fed.
        start = min(holder.length, allocator.length(holder.branch_id))
        return Reading(index, ids, allocator.fork(holder.branch_id, start).branch_id, start)


def _path_ids(kept: Kept) -> list[int]:
    parts: list[list[int]] = []
    node: Kept | None = kept
    while node is not None:
        parts.append(node.tokens)
        node = node.parent
    return [token for part in reversed(parts) for token in part]


def _behind(loaded: LoadedModel, question: str) -> str:
    """The text of the question behind a path, up to where the answer begins."""
    if not loaded.chat_template:
        return f"\n\n{question}\n"
    messages = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": _MARK},
        {"role": "user", "content": question},
    ]
    try:
        text = loaded.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:
        raise ModelError(f"the chat template of {loaded.name} failed: {one_line(error)}") from None
    return str(text).rpartition(_MARK)[2]


def _firsts(loaded: LoadedModel, words: Sequence[str]) -> set[int]:
    """Tokens that are one of the words, of those that the model can write; where none is, tokens that begin one."""
    forms = [ids for word in words if (ids := _encode(loaded, word))]
    whole = [ids for ids in forms if len(ids) == 1]
    special = set(loaded.tokenizer.all_special_ids)
    return {ids[0] for ids in whole or forms if ids[0] < loaded.vocab_size} - special


def _encode(loaded: LoadedModel, text: str) -> list[int]:
    return [int(token) for token in loaded.tokenizer(text, add_special_tokens=False)["input_ids"]]
