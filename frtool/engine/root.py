"""One prompt and the tree below it, in a forest."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from frtool.search.protocols import Expand, KVStats, Step

from .forest import Forest
from .holdings import Holdings
from .noise import course, step_key
from .prefill import check_prompt
from .revive import Reviver
from .rows import Kept, Row
from .shortage import told_as_shortage
from .steps import StepText


class Root:
    """Implements `search.protocols.Generator` for one tree of a `Forest`, which must be polled besides.

    The prompt is read once. A step forks its parent by reference, draws its first token from the parent's logits, and
    grows until its text is whole, the model ends it, or a limit cuts it. Then its last token is fed too ("sealed"), so
    that the children of a kept node start without recomputing anything. Where the model has process-reward tokens and
    `read_rewards` is set, the same pass reads the reward: the query token follows the path, its two label logits are
    compared, and it is taken back at once.

    A path ends ('end') where the model samples an end token, and also right after a delimiter when the end tokens are
    more probable there than everything else together: that needs no sample and makes no empty node.
    """

    def __init__(
        self, forest: Forest, prompt_ids: list[int], seed: int | None = None, *, read_later: bool = False
    ) -> None:
        """Read the prompt, or leave that to the forest's next `poll`, which reads all that wait in one pass; what then
        goes wrong, this root's own `poll` raises. `seed` keys the sampling noise; None takes that of the forest's
        options.

        Raises UsageError, with the numbers and before anything is changed, for a prompt that is empty or longer than
        the model or the pool; OutOfMemory where other roots hold the blocks; FrtoolError for NaN logits.
        """
        options, loaded = forest.options, forest.loaded
        self.forest = forest
        self.seed = options.seed if seed is None else seed
        self.capacity = forest.capacity
        self.prompt_tokens = len(prompt_ids)
        self.policy_tokens = 0
        self.scorer_tokens = 0
        self.recomputed_tokens = 0
        # The query takes a position of its own behind the path.
        self.max_length = loaded.max_positions - len(forest.query)
        check_prompt(loaded, self.prompt_tokens, self.max_length)
        forest.check_room(self.prompt_tokens)
        if options.max_path_tokens is not None:
            self.max_length = min(self.max_length, self.prompt_tokens + options.max_path_tokens)
        self.holdings = Holdings(forest.allocator, forest.swap)
        self.open: dict[tuple[str, int], Row] = {}
        """Submitted, not finished yet."""
        self._finished: list[Row] = []
        self._reviver = Reviver(self)
        self._failure: Exception | None = None
        self.trunk = forest.plant(self, list(prompt_ids))
        self.holdings.kept[self.trunk.id] = self.trunk
        if read_later:
            return
        try:
            forest.read_prompts()
            if self._failure is not None:
                raise self._failure
        except BaseException:
            self.close()
            raise

    @property
    def outstanding(self) -> int:
        return len(self.open) + len(self._finished)

    def submit(self, expand: Expand) -> None:
        """Queue one step. Raises ValueError for a parent that is not kept or has ended, and for a repeated step."""
        key = (expand.parent, expand.ordinal)
        kept = self.holdings.kept
        parent = kept.get(expand.parent)
        if parent is None:
            raise ValueError(f"node {expand.parent} is not kept")
        if parent.unread:
            self._reviver.read(parent)
        if parent.logits is None and not parent.pending:
            raise ValueError(f"the path to node {expand.parent} has ended")
        if key in self.open or key in self.holdings.done:
            raise ValueError(f"step {expand.parent}.{expand.ordinal} was submitted before")
        kept[parent.id] = kept.pop(parent.id)
        row = Row(
            root=self,
            parent=parent,
            ordinal=expand.ordinal,
            key=step_key(self.seed, expand.parent, expand.ordinal),
            text=StepText(self.forest.detokenizer, self.forest.options.delimiter, parent.tail),
            most=min(self.forest.options.max_step_tokens, self.max_length - parent.length),
            greedy=expand.greedy,
            known=() if expand.greedy else expand.prefix,
            course=course(expand.prefix, expand.uniform),
        )
        self.open[key] = row
        self.forest.waiting.append(row)

    def finish(self, row: Row) -> None:
        """Take a finished step from the forest."""
        self.holdings.done[row.parent.id, row.ordinal] = self.open.pop((row.parent.id, row.ordinal))
        self._finished.append(row)

    def poll(self) -> list[Step]:
        """The steps that finished in the forest's polls since the last call. Raises what kept the prompt from being
        read."""
        if self._failure is not None:
            raise self._failure
        finished, self._finished = self._finished, []
        return [
            Step(
                parent=row.parent.id,
                ordinal=row.ordinal,
                text=row.text.text,
                tokens=row.sampled,
                logprob=row.logprob,
                finish=row.finish or "",
                reward=row.reward,
                ids=tuple(row.tokens),
                # Seven digits are what float32 holds below 1, which a sum in pieces may pass by the last of them.
                intervals=tuple(min(round(edge, 7), 1.0) for edge in row.intervals),
                read_tokens=0 if row.reward is None else len(self.forest.query),
            )
            for row in finished
        ]

    def fail(self, error: Exception) -> None:
        """The prompt cannot be read."""
        self._failure = error
        self.forest.forget(self)
        self.holdings.unbind(self.trunk)

    def keep(self, step: Step) -> None:
        row = self._done(step)
        with told_as_shortage(f"the logits of node {row.name}"):
            # A copy, so that the logits of the other steps that finished with this one can go.
            logits = None if row.logits is None else row.logits.to(self.forest.loaded.dtype, copy=True)
        del self.holdings.done[step.parent, step.ordinal]
        self.holdings.kept[row.name] = Kept(
            id=row.name,
            parent=row.parent,
            tokens=row.tokens,
            length=row.length,
            tail=row.text.tail,
            logits=logits,
            branch_id=row.branch_id,
            host=row.host,
        )

    def restore(self, step: Step) -> None:
        """Hold the node of a step that another process grew. Raises Mismatch where this model cannot have grown it."""
        node = self._reviver.make(step)
        self.holdings.kept[node.id] = node

    def drop(self, step: Step) -> None:
        self.holdings.unbind(self._done(step))
        del self.holdings.done[step.parent, step.ordinal]

    def release(self, node_id: str) -> None:
        """Raises ValueError for a node that is not kept."""
        node = self.holdings.kept.pop(node_id, None)
        if node is None:
            raise ValueError(f"node {node_id} is not kept")
        node.released = True
        self.holdings.unbind(node)

    def value(self, node_id: str, value: float) -> None:
        """What a kept node is worth: the least are evicted first."""
        self.holdings.kept[node_id].value = value

    def growing(self) -> Iterator[tuple[str, str]]:
        """Id and text so far of the steps under way that have text, first asked for first."""
        for row in self.open.values():
            text = row.text.text.rstrip("\ufffd")  # the end of a character may be to come
            if text:
                yield row.name, text

    def take_evicted(self) -> list[str]:
        """The kept nodes that were evicted since the last call."""
        evicted, self.holdings.evicted = self.holdings.evicted, []
        return evicted

    def cancel(self) -> None:
        """Abandon what is under way and what finished unseen, and free it."""
        self.forest.forget(self)
        for row in self.open.values():
            self.holdings.unbind(row)
        self.open.clear()
        for row in self._finished:
            self.holdings.unbind(self.holdings.done.pop((row.parent.id, row.ordinal)))
        self._finished.clear()

    def close(self) -> None:
        """Free everything, the prompt too, and leave the forest."""
        self.cancel()
        for row in self.holdings.done.values():
            self.holdings.unbind(row)
        self.holdings.done.clear()
        for name in list(self.holdings.kept):
            self.release(name)
        self.forest.uproot(self)

    def kv(self) -> KVStats:
        """Of the whole forest, but for `bytes_used`, `recomputed_tokens` and `restored_tokens`."""
        stats = self.forest.allocator.stats()
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
            bytes_used=stats.bytes_used if len(self.forest.roots) == 1 else self._bytes_used(),
            recomputed_tokens=self.recomputed_tokens,
            restored_tokens=self.holdings.restored_tokens,
        )

    def _bytes_used(self) -> int:
        """Of the blocks that this tree's branches hold, each counted once."""
        holders: list[Kept | Row] = [*self.holdings.kept.values(), *self.holdings.done.values(), *self.open.values()]
        branches = [holder.branch_id for holder in holders if holder.branch_id is not None]
        tables = self.forest.allocator.block_tables(branches)
        return len(np.unique(tables[tables >= 0])) * self.forest.allocator.block_bytes

    def _done(self, step: Step) -> Row:
        try:
            return self.holdings.done[step.parent, step.ordinal]
        except KeyError:
            raise ValueError(f"step {step.parent}.{step.ordinal} is not finished, or was kept or dropped") from None
