"""One model, one KV pool, and a decode batch that steps join and leave at any token."""

from __future__ import annotations

from collections import deque
from itertools import chain
from typing import TYPE_CHECKING

import torch

from frtool.errors import UsageError
from frtool.kernels.allocator import OutOfBlocks
from frtool.search.protocols import Expand, KVStats, OutOfMemory, Step

from .batch import DecodeBatch
from .flight import Flight, Reader, Readings
from .holdings import Holdings
from .noise import step_key
from .options import EngineOptions
from .pool import make_pool
from .prefill import check_prompt, read_prompt
from .rows import Kept, Row
from .steps import Detokenizer, StepText

if TYPE_CHECKING:
    from frtool.models.load import LoadedModel

# After a delimiter: the path ends there if the model gives the end tokens more than this.
_END_PROBABILITY = 0.5


class Engine:
    """Implements `search.protocols.Generator` over a loaded model.

    The prompt is read once, into the root. A step forks its parent by reference, draws its first token from the
    parent's logits, and grows until its text is whole, the model ends it, or a limit cuts it. Then its last token is
    fed too ("sealed"), so that the children of a kept node start without recomputing anything. Where the model has
    process-reward tokens and `read_rewards` is set, the same pass reads the reward: the query token follows the path,
    its two label logits are compared, and it is taken back at once.

    A path ends ('end') where the model samples an end token, and also right after a delimiter when the end tokens are
    more probable there than everything else together: that needs no sample and makes no empty node.

    When blocks run out, kept nodes are evicted, longest unused first, and recomputed when they are next expanded; then
    the youngest rows go back to the queue, where they keep their tokens. None of this changes a sample.
    After an exception from `poll` only `cancel`, `keep`, `drop`, `release` and `kv` work.
    """

    def __init__(self, loaded: LoadedModel, prompt_ids: list[int], options: EngineOptions) -> None:
        """Allocate the pool and read the prompt.

        Raises UsageError, with the numbers and before anything is allocated, for a prompt that is empty or longer than
        the model or the pool, and for rewards from a model without reward tokens; FrtoolError for NaN logits.
        """
        self.options = options
        self.capacity = options.batch
        self.prompt_tokens = len(prompt_ids)
        self.policy_tokens = 0
        self.scorer_tokens = 0
        reward_tokens = loaded.reward_tokens
        if options.read_rewards and reward_tokens is None:
            raise UsageError(f"{loaded.name} has no process-reward tokens", hint="use --scorer logprob")
        self._query = [reward_tokens.query] if options.read_rewards and reward_tokens else []
        # The query takes a position of its own behind the path.
        self._max_length = loaded.max_positions - len(self._query)
        check_prompt(loaded, self.prompt_tokens, self._max_length)
        if options.max_path_tokens is not None:
            self._max_length = min(self._max_length, self.prompt_tokens + options.max_path_tokens)

        self._end_ids = loaded.eos_ids
        self._logits_dtype = loaded.dtype
        self._reader = Reader(loaded, options)
        self._detokenizer = Detokenizer(loaded.tokenizer)

        self.allocator = make_pool(loaded, self.prompt_tokens, options)
        self._batch = DecodeBatch(loaded, self.allocator, max(2 * options.batch, 8))
        self._holdings = Holdings(self.allocator)
        self._open: dict[tuple[str, int], Row] = {}  # submitted, not returned yet
        self._waiting: deque[Row] = deque()
        self._rows: list[Row] = []  # in the decode batch, oldest first
        self._joining: list[Row] = []  # those of them that have no token yet
        self._flight: Flight | None = None
        root = read_prompt(
            loaded, self.allocator, self._batch, self._detokenizer, list(prompt_ids), options.prefill_chunk
        )
        self._holdings.kept[root.id] = root

    # The Generator protocol

    @property
    def outstanding(self) -> int:
        return len(self._open)

    def submit(self, expand: Expand) -> None:
        """Queue one step. Raises ValueError for a parent that is not kept or has ended, and for a repeated step."""
        key = (expand.parent, expand.ordinal)
        parent = self._holdings.kept.get(expand.parent)
        if parent is None:
            raise ValueError(f"node {expand.parent} is not kept")
        if parent.logits is None:
            raise ValueError(f"the path to node {expand.parent} has ended")
        if key in self._open or key in self._holdings.done:
            raise ValueError(f"step {expand.parent}.{expand.ordinal} was submitted before")
        self._holdings.kept[parent.id] = self._holdings.kept.pop(parent.id)
        row = Row(
            parent=parent,
            ordinal=expand.ordinal,
            key=step_key(self.options.seed, expand.parent, expand.ordinal),
            text=StepText(self._detokenizer, self.options.delimiter, parent.tail),
        )
        self._open[key] = row
        self._waiting.append(row)

    @torch.inference_mode()
    def poll(self) -> list[Step]:
        """Read what the last forward pass gave and start the next one: each growing step gains a token.

        Raises OutOfMemory when not even one step fits after everything idle was evicted (more polls may succeed after
        a `release`), FrtoolError for NaN logits.
        """
        self._admit()
        finished = self._collect()
        try:
            self._launch()
        except OutOfMemory:
            if not finished:
                raise
        for row in finished:
            self._holdings.done[row.parent.id, row.ordinal] = self._open.pop((row.parent.id, row.ordinal))
        return [
            Step(
                parent=row.parent.id,
                ordinal=row.ordinal,
                text=row.text.text,
                tokens=row.sampled,
                logprob=row.logprob,
                finish=row.finish or "",
                reward=row.reward,
            )
            for row in finished
        ]

    def keep(self, step: Step) -> None:
        row = self._take_done(step)
        self._holdings.kept[row.name] = Kept(
            id=row.name,
            parent=row.parent,
            tokens=row.tokens,
            length=row.length,
            tail=row.text.tail,
            # A copy, so that the logits of the other steps that finished with this one can go.
            logits=None if row.logits is None else row.logits.to(self._logits_dtype, copy=True),
            branch_id=row.branch_id,
        )

    def drop(self, step: Step) -> None:
        self._holdings.unbind(self._take_done(step))

    def release(self, node_id: str) -> None:
        """Raises ValueError for a node that is not kept."""
        node = self._holdings.kept.pop(node_id, None)
        if node is None:
            raise ValueError(f"node {node_id} is not kept")
        node.released = True
        self._holdings.unbind(node)

    def cancel(self) -> None:
        for row in self._open.values():
            self._holdings.unbind(row)
        self._open.clear()
        self._waiting.clear()
        self._rows.clear()
        self._joining.clear()
        self._flight = None

    def kv(self) -> KVStats:
        stats = self.allocator.stats()
        return KVStats(
            blocks_used=stats.blocks_used,
            blocks_total=stats.blocks_total,
            physical_tokens=stats.physical_tokens,
            logical_tokens=stats.logical_tokens,
            peak_blocks=stats.peak_blocks,
            peak_bytes=stats.peak_bytes,
            unshared_peak_bytes=stats.unshared_peak_bytes,
            forks=stats.forks,
            frees=stats.frees,
        )

    # Joining

    def _admit(self) -> None:
        """Let waiting steps into the batch, in order, while it has rows and the pool has blocks for them."""
        while self._waiting and len(self._rows) < self.capacity:
            row = self._waiting[0]
            if self._rows:  # leave a block to each that is there
                room = self._holdings.blocks_to_bind(row, 1 + len(self._query)) + len(self._rows)
                if self.allocator.free_blocks < room:
                    self._evict(room)
                if self.allocator.free_blocks < room:
                    return
            self._waiting.popleft()
            self._holdings.bind(row)
            self._rows.append(row)
            if not row.sampled:
                self._joining.append(row)

    def _evict(self, blocks: int) -> bool:
        return self._holdings.evict(blocks, [row.parent for row in self._rows])

    # Reading the last pass

    def _collect(self) -> list[Row]:
        """Give each growing row its next token. Returns the rows whose step is finished."""
        flight, joining = self._flight, self._joining
        if flight is None and not joining:
            return []
        readings = self._reader.read(flight, joining)
        self._flight, self._joining = None, []
        growing = [*flight.growing, *joining] if flight else joining
        finished = [
            row
            for row, token, logprob in zip(growing, readings.tokens, readings.logprobs, strict=True)
            if self._advance(row, token, logprob)
        ]
        if finished:
            gone = set(map(id, finished))
            self._rows = [row for row in self._rows if id(row) not in gone]
        if flight is not None:
            self._close(flight, readings)
            finished += flight.sealed + flight.ended
        return finished

    def _close(self, flight: Flight, readings: Readings) -> None:
        """Finish the rows of a flight that need no more tokens."""
        for index, (row, end) in enumerate(zip(flight.sealed, readings.ends, strict=True)):
            if end > _END_PROBABILITY:
                row.finish = "end"
            elif row.length >= self._max_length:
                row.finish = "length"
            else:
                row.logits = flight.next_logits(index)
        if self._query:
            for row, reward in zip(flight.sealed + flight.ended, readings.rewards, strict=True):
                row.reward = reward

    def _advance(self, row: Row, token: int, logprob: float) -> bool:
        """Add a sampled token; say whether the step is finished and needs no further pass."""
        self.policy_tokens += 1
        row.sampled += 1
        row.logprob += logprob
        if token in self._end_ids:
            row.finish = "end"
        else:
            row.tokens.append(token)
            if row.text.push(token):
                row.finish = "step"
                return False
            if len(row.tokens) >= self.options.max_step_tokens or row.length >= self._max_length:
                row.finish = "length"
        return row.finish is not None and not self._query

    # Starting the next pass

    def _launch(self) -> None:
        feeds = self._allot()
        if not feeds:
            return
        growing: list[tuple[Row, int]] = []
        sealed: list[tuple[Row, int]] = []
        ended: list[tuple[Row, int]] = []
        stop = 0
        for row, tokens in feeds:
            stop += len(tokens)
            group = growing if row.finish is None else sealed if row.finish == "step" else ended
            group.append((row, stop - 1))
        query = len(self._query)
        logit_rows = [last for _, last in growing] + [last - query for _, last in sealed]
        if query:
            logit_rows += [last for _, last in sealed + ended]
        logits = self._batch.forward(
            [row.branch_id for row, _ in feeds if row.branch_id is not None],
            [len(tokens) for _, tokens in feeds],
            list(chain.from_iterable(tokens for _, tokens in feeds)),
            logit_rows,
        )
        self._flight = Flight(logits, *([row for row, _ in group] for group in (growing, sealed, ended)))
        self._rows = list(self._flight.growing)
        for row, tokens in feeds:
            row.fed += len(tokens)
            if query and row.finish is not None:
                row.fed -= 1
                self.scorer_tokens += 1
                self._holdings.take_back(row)
            if row.prefix:
                self._holdings.restore_parent(row)

    def _allot(self) -> list[tuple[Row, list[int]]]:
        """Make room in every branch for what it is fed next. Rows that find none go back to the queue."""
        while self._rows:
            feeds = [(row, row.unfed() if row.finish is None else row.unfed() + self._query) for row in self._rows]
            branches = [row.branch_id for row in self._rows if row.branch_id is not None]
            try:
                self.allocator.append_many(branches, [len(tokens) for _, tokens in feeds])
            except OutOfBlocks as error:
                if self._evict(error.needed):
                    continue
                row = self._rows.pop()
                self._holdings.unbind(row)
                self._waiting.appendleft(row)
                if not self._rows:
                    raise OutOfMemory(
                        f"step {row.name} needs {error.needed} more KV blocks, {error.free} are free "
                        f"of {self.allocator.num_blocks}"
                    ) from None
            else:
                return feeds
        return []

    def _take_done(self, step: Step) -> Row:
        try:
            return self._holdings.done.pop((step.parent, step.ordinal))
        except KeyError:
            raise ValueError(f"step {step.parent}.{step.ordinal} is not finished, or was kept or dropped") from None
