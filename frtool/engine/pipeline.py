"""The decode loop of a GPU: the next pass is under way before the host has seen the tokens of the last one."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch

from frtool.kernels.allocator import OutOfBlocks
from frtool.search.protocols import OutOfMemory

from .batch import on_device
from .capture import Passes
from .feeds import Feed, Pass, gather
from .flight import nan_error
from .noise import row_noise
from .readout import END, LOGPROB, REWARD
from .rows import Row

if TYPE_CHECKING:
    from .forest import Forest


class Pipeline:
    """Runs the rows of a forest, one token a poll each, with one pass in flight while the one before is read.

    A growing row's next token goes from pass to pass on the device, and with it those that the row is known to draw
    after it. Whether a step is whole shows one pass later: its last token is in KV by then, as its children need it. A
    row that the model ended has had one token too many, which is taken back. So the host reads, searches and plans
    while the device computes.
    """

    def __init__(self, forest: Forest, passes: Passes) -> None:
        self.passes = passes
        self._forest: Forest = weakref.proxy(forest)  # so that nothing keeps the pool of a search that is over
        self._flight: Pass | None = None
        self._query = list(forest.query)

    def poll(self) -> list[Row]:
        """Advance all rows of the forest. Returns those whose step is finished. Raises as `Forest.poll` does."""
        with on_device(self._forest.loaded.device):
            return self._poll()

    def _poll(self) -> list[Row]:
        flight = self._flight
        if flight is not None:
            self._keep_logits(flight)
        first = self._first()
        ahead = self._launch(flight, first) if flight is not None or first is not None else None
        finished = self._read(flight, ahead) if flight is not None else []
        if first is not None:
            finished += self._read(first, ahead)
        self._flight = ahead
        if ahead is None:
            try:
                self._flight = self._launch(None, None)
            except OutOfMemory:
                if not finished:
                    raise
        return finished

    # Starting a pass

    def _first(self) -> Pass | None:
        """The first tokens of the rows that join. Where the device has no memory for them, these wait again."""
        forest = self._forest
        try:
            first = self._draw_first(forest.joining)
        except torch.OutOfMemoryError as error:
            if len(forest.joining) == len(forest.rows):
                forest.halve(error)
            for row in reversed(forest.joining):
                forest.put_back(row)
            first = None
        forest.joining = []
        return first

    def _draw_first(self, joining: Sequence[Row]) -> Pass | None:
        """Sample the first token of rows from their parents' logits."""
        joining = [row for row in joining if row.parent.logits is not None]
        if not joining:
            return None
        kept = [row.parent.logits for row in joining if row.parent.logits is not None]
        drawn = self.passes.draw(kept, row_noise(joining, [row.sampled for row in joining]))
        return Pass([Feed(row, [], -1) for row in joining], drawn)

    def _launch(self, flight: Pass | None, first: Pass | None) -> Pass | None:
        """Start the next pass, where `flight` and `first` are not read yet. None if there is nothing to run, or with
        something unread, no room in the pool or on the device. With nothing unread, a device without memory for the
        pass makes the next ones half as large.

        Raises OutOfMemory when not even one row has room.
        """
        alone = flight is None and first is None
        feeds = self._feeds(flight, first)
        if not self._make_room(feeds, alone):
            return None
        try:
            drawn = self.passes.launch(gather(feeds))
        except torch.OutOfMemoryError as error:
            for feed in feeds:
                feed.row.root.holdings.take_back(feed.row, len(feed.tokens))
            if alone:
                self._forest.halve(error)
            return None
        for feed in feeds:
            row = feed.row
            if not row.fed:  # but for its newest token, all of it was in KV once
                row.root.recomputed_tokens += len(feed.tokens) - feed.draws
            row.fed += len(feed.tokens)
            if feed.is_query:
                row.root.scorer_tokens += 1
                self._take_back(row)
            if row.prefix:
                row.root.holdings.restore_parent(row)
        return Pass(feeds, drawn)

    def _feeds(self, flight: Pass | None, first: Pass | None) -> list[Feed]:
        sources: dict[Row, tuple[int, int]] = {}
        judged = set()
        for unread, origin in ((flight, 0), (first, self.passes.limit)):
            for feed, place in zip(unread.feeds, unread.places(), strict=True) if unread else ():
                row = feed.row
                if feed.is_query:
                    judged.add(row)
                elif row.finish is None:
                    sources[row] = origin + place, feed.draws
        feeds = []
        for row in self._forest.rows:
            if row in sources:
                source, drawn = sources[row]
                # Whether it needs a pass after the tokens that are drawn just now, unless these end it.
                if len(row.tokens) + drawn < row.most:
                    feeds.append(Feed(row, [0] if row.sampled else [*row.unfed(), 0], source, drawn))
                continue
            tokens = row.unfed()
            if tokens:
                feeds.append(Feed(row, tokens, -1))
            elif row.finish is not None and self._query and row not in judged:
                feeds.append(Feed(row, list(self._query), -1, is_query=True))
        room = self.passes.limit - sum(len(feed.tokens) for feed in feeds)
        for feed in feeds:
            if feed.row.known and feed.row.finish is None:
                ahead = feed.row.ahead(room, self._forest.loaded.eos_ids, feed.unread)
                feed.tokens += ahead
                feed.draws += len(ahead)
                room -= len(ahead)
        return feeds

    def _make_room(self, feeds: list[Feed], alone: bool) -> bool:
        """Append to every branch what it is fed; False if there is nothing to feed. Where blocks run out, idle nodes
        are evicted; then, with nothing unread (`alone`), the youngest rows go back to the queue."""
        forest = self._forest
        while feeds:
            branches = [feed.row.branch_id for feed in feeds if feed.row.branch_id is not None]
            try:
                forest.allocator.append_many(branches, [len(feed.tokens) for feed in feeds])
            except OutOfBlocks as error:
                if forest.evict(error.needed):
                    continue
                if not alone:
                    return False
                row = feeds.pop().row
                forest.put_back(row)
                if not feeds:
                    raise OutOfMemory(
                        f"step {row.name} needs {error.needed} more KV blocks, {error.free} are free "
                        f"of {forest.allocator.num_blocks}"
                    ) from None
            else:
                return True
        return False

    # Reading a pass

    def _keep_logits(self, flight: Pass) -> None:
        """Copy the logits after whole steps, before the next pass takes their place."""
        places = {feed.row: place for feed, place in zip(flight.feeds, flight.places(), strict=True) if feed.seals}
        if places:
            where = torch.tensor(list(places.values())).to(flight.drawn.logits.device, non_blocking=True)
            flight.kept = dict(zip(places, flight.drawn.logits.index_select(0, where), strict=True))

    def _read(self, flight: Pass, ahead: Pass | None) -> list[Row]:
        """Give each row what the pass found. Returns the rows whose step is finished."""
        values = flight.drawn.wait()
        if np.isnan(values).any():
            self._check(flight, values)
        advance, finished = self._forest.advance, []
        stopped: list[tuple[Row, int]] = []
        readings = zip(*values.tolist(), strict=True)
        for feed in flight.feeds:
            row, columns = feed.row, list(islice(readings, feed.draws))
            _, _, end, reward, _, _ = columns[0]
            if row.struck or feed.void:
                continue
            if feed.is_query:
                row.reward = reward
                finished.append(row)
            elif row.finish is None:
                for read, (token, logprob, _, _, low, high) in enumerate(columns, 1):
                    if advance(row, int(token), logprob, low, high):
                        finished.append(row)
                    if row.finish is not None:
                        stopped.append((row, feed.draws - read))
                        break
            elif row.finish == "step":
                row.seal(end, flight.kept[row])
                if not self._query:
                    finished.append(row)
        if stopped:
            self._take_back_surplus(stopped, ahead)
        if finished:
            gone = set(finished)
            self._forest.rows = [row for row in self._forest.rows if row not in gone]
        return finished

    def _take_back_surplus(self, stopped: list[tuple[Row, int]], ahead: Pass | None) -> None:
        """Of rows that stopped, take back what was fed from the token on that stopped them: so many in the pass that is
        read, and what the next pass was fed, unless that is the last token of a whole step."""
        following = {feed.row: feed for feed in ahead.feeds} if ahead is not None else {}
        for row, surplus in stopped:
            feed = following.get(row)
            if feed is not None and (row.finish != "step" or surplus or feed.draws > 1):
                feed.void = True
                surplus += feed.draws
            if surplus:
                self._take_back(row, surplus)

    @staticmethod
    def _check(flight: Pass, values: np.ndarray) -> None:
        columns = iter(np.isnan(values).T.tolist())
        for feed in flight.feeds:
            wanted = REWARD if feed.is_query else END if feed.seals else LOGPROB
            for column in islice(columns, feed.draws):
                if column[wanted] and not (feed.void or feed.row.struck):
                    raise nan_error(f"step {feed.row.name}, after {feed.row.sampled} tokens")

    @staticmethod
    def _take_back(row: Row, tokens: int = 1) -> None:
        row.root.holdings.take_back(row, tokens)
        row.fed -= tokens


def make_pipeline(forest: Forest) -> Pipeline | None:
    """The loop for a GPU, or where the options ask for it; None for the plain one."""
    options, loaded = forest.options, forest.loaded
    wanted = loaded.device.type == "cuda" if options.pipeline is None else options.pipeline
    if not wanted:
        return None
    with on_device(loaded.device):
        passes = Passes(loaded, forest.allocator, options)
        passes.rehearse()
    return Pipeline(forest, passes)
