"""Several prompts in one KV pool and one decode batch, that steps join and leave at any token."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from itertools import chain
from typing import TYPE_CHECKING

import torch

from frtool.errors import UsageError
from frtool.kernels.allocator import OutOfBlocks
from frtool.search.protocols import OutOfMemory

from .batch import DecodeBatch
from .flight import Flight, Reader, Readings
from .options import EngineOptions
from .pace import Pace, may_change_threads
from .pipeline import make_pipeline
from .pool import check_blocks, make_pool
from .prefill import Prefill
from .rows import Kept, Row
from .shortage import shortage, told_as_shortage
from .steps import Detokenizer
from .swap import HostMemory

if TYPE_CHECKING:
    from frtool.models.load import LoadedModel

    from .capture import Passes
    from .root import Root

# Tokens that the rows of a pass, together, are fed before they are drawn: their logits take memory.
_MOST_AHEAD = 64


class Forest:
    """One model over many trees. A `Root` plants itself here and asks for steps; `poll` advances the steps of all.

    Every root's samples are those that it would get alone: noise depends on its own seed and node ids, and no row's
    numbers depend on the others in the batch. Roots whose prompts begin alike share the KV of what is alike.

    When blocks run out, kept nodes are evicted, those of the youngest root first and of these the longest unused, and
    recomputed, or copied back from host memory, when they are next expanded; then the youngest rows go back to the
    queue, where they keep their tokens.
    After an exception from `poll` only what frees works.
    """

    def __init__(self, loaded: LoadedModel, options: EngineOptions, prompt_tokens: int = 1) -> None:
        """Allocate the pool, which holds at least a prompt of `prompt_tokens` and one step.

        Raises UsageError where that does not fit, and for rewards from a model without reward tokens.
        """
        if options.read_rewards and loaded.reward_tokens is None:
            raise UsageError(f"{loaded.name} has no process-reward tokens", hint="use --scorer logprob")
        self.loaded = loaded
        self.options = options
        self.capacity = self._most_rows = options.batch
        self.query = [loaded.reward_tokens.query] if options.read_rewards and loaded.reward_tokens else []
        self.detokenizer = Detokenizer(loaded.tokenizer)
        self.allocator = make_pool(loaded, prompt_tokens, options)
        self.swap = HostMemory(loaded, self.allocator, options.swap_space)
        self._prefill = Prefill(self)
        self.on_prefill: Callable[[int], None] | None = None
        """Told how many tokens of a prompt are read, chunk by chunk."""
        self.roots: list[Root] = []
        """Oldest first."""
        self.rows: list[Row] = []
        """In the decode batch, oldest first."""
        self.waiting: deque[Row] = deque()
        self.joining: list[Row] = []
        """Those of the batch that have no token yet."""
        self._flight: Flight | None = None
        self._end_ids = loaded.eos_ids
        self.reader = Reader(loaded, options)
        self.batch = DecodeBatch(loaded, self.allocator, max(2 * options.batch, 8))
        self._pipeline = make_pipeline(self)
        self._pace = Pace(torch.get_num_threads()) if may_change_threads(loaded) else None

    @property
    def passes(self) -> Passes | None:
        """What runs the decode passes where they are pipelined."""
        return None if self._pipeline is None else self._pipeline.passes

    @property
    def mode(self) -> str:
        """How decode passes run, for people."""
        if self.passes is not None:
            return self.passes.mode
        return "eager, not compiled (that needs a GPU)" if self.options.compile else "eager"

    @property
    def outstanding(self) -> int:
        """Steps under way, of all roots."""
        return sum(len(root.open) for root in self.roots)

    @property
    def roomy(self) -> bool:
        """Whether one more root finds rows and blocks."""
        free = self.allocator.free_blocks - self._prefill.blocks
        return self.outstanding < self.capacity and 4 * free > self.allocator.num_blocks

    def check_room(self, prompt_tokens: int) -> None:
        """Raise UsageError unless the empty pool holds such a prompt and one step below it."""
        check_blocks(self.loaded, prompt_tokens, self.options, self.allocator.num_blocks, self.allocator.block_size)

    def plant(self, root: Root, prompt: list[int]) -> Kept:
        """Promise a new root the blocks of its prompt, which the next `read_prompts` or `poll` reads, as far as no
        other root has read the same. Raises OutOfMemory."""
        trunk = self._prefill.add(root, prompt)
        self.roots.append(root)
        return trunk

    def read_prompts(self) -> None:
        """Read all prompts that wait, together."""
        self._prefill.read()

    @torch.inference_mode()
    def poll(self) -> None:
        """Read what the last forward pass gave and start the next one: each growing step gains a token. Finished steps
        wait at their roots. Prompts that wait are read before.

        Raises OutOfMemory when not even one step fits after everything idle was evicted (more polls may succeed after
        a `release`), FrtoolError for NaN logits.
        """
        self._prefill.read()
        self._admit()
        with told_as_shortage(f"a pass of {len(self.rows)} steps"):
            if self._pipeline is not None:
                finished = self._pipeline.poll()
            else:
                with self._pace or nullcontext():
                    finished = self._collect()
                    try:
                        self._launch()
                    except OutOfMemory:
                        if not finished:
                            raise
        for row in finished:
            row.root.finish(row)

    def forget(self, root: Root) -> None:
        """Drop what is under way for a root; its branches are its own to free."""
        for row in root.open.values():
            row.struck = True
        self.waiting = deque(row for row in self.waiting if not row.struck)
        self.rows = [row for row in self.rows if not row.struck]
        self.joining = [row for row in self.joining if not row.struck]

    def uproot(self, root: Root) -> None:
        """Take a root off the list, when it holds nothing any more."""
        self._prefill.drop(root)
        self.roots = [other for other in self.roots if other is not root]
        if not self.roots and self._pace is not None:
            self._pace.rest()

    # Joining

    def _admit(self) -> None:
        """Let waiting steps into the batch, in order, while it has rows and the pool has blocks for them."""
        while self.waiting and len(self.rows) < self._most_rows:
            row = self.waiting[0]
            if self.rows:  # leave a block to each that is there
                room = row.root.holdings.blocks_to_bind(row, 1 + len(self.query)) + len(self.rows)
                if self.allocator.free_blocks < room:
                    self.evict(room)
                if self.allocator.free_blocks < room:
                    return
            self.waiting.popleft()
            row.root.holdings.bind(row)
            self.rows.append(row)
            if not row.sampled:
                self.joining.append(row)

    def put_back(self, row: Row) -> None:
        """Take a row out of the batch and let it join again later, with the tokens that it has."""
        self.rows = [other for other in self.rows if other is not row]
        row.root.holdings.put_back(row)
        self.waiting.appendleft(row)

    def evict(self, blocks: int) -> bool:
        """Evict idle nodes until so many blocks are free or none is left; say whether any was evicted."""
        busy = [row.parent for row in self.rows]
        evicted = False
        for root in reversed(self.roots):
            evicted = root.holdings.evict(blocks, busy) or evicted
            if self.allocator.free_blocks >= blocks:
                break
        return evicted

    # Reading the last pass

    def _collect(self) -> list[Row]:
        """Give each growing row its next token. Returns the rows whose step is finished."""
        flight, joining = self._flight, self.joining
        if flight is None and not joining:
            return []
        readings = self.reader.read(flight, joining)
        self._flight, self.joining = None, []
        growing = [*flight.growing, *joining] if flight else joining
        finished: list[Row] = []
        over: dict[Row, int] = {}
        for row, token, logprob, low, high in zip(
            growing, readings.tokens, readings.logprobs, readings.lows, readings.highs, strict=True
        ):
            if row.struck:
                continue
            if row.finish is not None:  # by the token before: what it was fed ahead is too much
                over[row] = over.get(row, 0) + 1
            elif self.advance(row, token, logprob, low, high):
                finished.append(row)
        for row, tokens in over.items():
            row.root.holdings.take_back(row, tokens)
            row.fed -= tokens
        if finished:
            gone = set(map(id, finished))
            self.rows = [row for row in self.rows if id(row) not in gone]
        if flight is not None:
            self._close(flight, readings)
            finished += [row for row in flight.sealed + flight.ended if not row.struck]
        return finished

    def _close(self, flight: Flight, readings: Readings) -> None:
        """Finish the rows of a flight that need no more tokens."""
        for index, (row, end) in enumerate(zip(flight.sealed, readings.ends, strict=True)):
            row.seal(end, flight.next_logits(index))
        if self.query:
            for row, reward in zip(flight.sealed + flight.ended, readings.rewards, strict=True):
                row.reward = reward

    def advance(self, row: Row, token: int, logprob: float, low: float, high: float) -> bool:
        """Add a sampled token and its interval; say whether the step is finished and needs no further pass."""
        tokens = row.tokens
        row.root.policy_tokens += 1
        row.sampled += 1
        row.logprob += logprob
        if row.course:
            row.intervals += (low, high)
        if token in self._end_ids:
            row.finish = "end"
        else:
            tokens.append(token)
            if row.text.push(token):
                row.finish = "step"
                return False
            if len(tokens) < row.most:
                return False
            row.finish = "length"
        return not self.query

    # Starting the next pass

    def _launch(self) -> None:
        feeds = self._allot()
        if not feeds:
            return
        growing: list[tuple[Row, int]] = []
        sealed: list[tuple[Row, int]] = []
        ended: list[tuple[Row, int]] = []
        stop = 0
        for row, tokens, ahead in feeds:
            stop += len(tokens)
            if row.finish is None:
                growing += [(row, last) for last in range(stop - 1 - ahead, stop)]
            else:
                (sealed if row.finish == "step" else ended).append((row, stop - 1))
        query = len(self.query)
        logit_rows = [last for _, last in growing] + [last - query for _, last in sealed]
        if query:
            logit_rows += [last for _, last in sealed + ended]
        try:
            logits = self.batch.forward(
                [row.branch_id for row, _, _ in feeds if row.branch_id is not None],
                [len(tokens) for _, tokens, _ in feeds],
                list(chain.from_iterable(tokens for _, tokens, _ in feeds)),
                logit_rows,
            )
        except torch.OutOfMemoryError as error:
            self.halve(error)
            return
        self._flight = Flight(logits, *([row for row, _ in group] for group in (growing, sealed, ended)))
        self.rows = list(dict.fromkeys(self._flight.growing))
        for row, tokens, _ in feeds:
            if not row.fed:  # but for its newest token, all of it was in KV once
                row.root.recomputed_tokens += len(row.prefix) + max(len(row.tokens) - 1, 0)
            row.fed += len(tokens)
            if query and row.finish is not None:
                row.fed -= 1
                row.root.scorer_tokens += 1
                row.root.holdings.take_back(row)
            if row.prefix:
                row.root.holdings.restore_parent(row)

    def halve(self, error: torch.OutOfMemoryError) -> None:
        """Go on with half as many rows after a pass that found no memory; all of them wait again and keep their tokens.
        Raises OutOfMemory where it was one."""
        count = len(self.rows)
        for row in reversed(self.rows):
            row.root.holdings.unbind(row)
            self.waiting.appendleft(row)
        self.rows, self.joining = [], []
        if count == 1:
            raise shortage(error, f"step {self.waiting[0].name}") from None
        self._most_rows = count // 2

    def _allot(self) -> list[tuple[Row, list[int], int]]:
        """Make room in every branch for what it is fed next, and say how much of that it has not drawn yet. Rows that
        find none go back to the queue."""
        while self.rows:
            feeds = self._feeds()
            branches = [row.branch_id for row in self.rows if row.branch_id is not None]
            try:
                self.allocator.append_many(branches, [len(tokens) for _, tokens, _ in feeds])
            except OutOfBlocks as error:
                if self.evict(error.needed):
                    continue
                row = self.rows[-1]
                self.put_back(row)
                if not self.rows:
                    raise OutOfMemory(
                        f"step {row.name} needs {error.needed} more KV blocks, {error.free} are free "
                        f"of {self.allocator.num_blocks}"
                    ) from None
            else:
                return feeds
        return []

    def _feeds(self) -> list[tuple[Row, list[int], int]]:
        feeds = []
        room = max(self.capacity, _MOST_AHEAD)
        for row in self.rows:
            if row.finish is not None:
                feeds.append((row, row.unfed() + self.query, 0))
            elif row.known:
                ahead = row.ahead(room, self._end_ids)
                room -= len(ahead)
                feeds.append((row, row.unfed() + ahead, len(ahead)))
            else:
                feeds.append((row, row.unfed(), 0))
        return feeds
