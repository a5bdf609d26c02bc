"""What the rows of a forest get in a pass that is read later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from .fixed_step import Drawn, Tokens
from .noise import row_noise
from .rows import Row


@dataclass(slots=True, eq=False)
class Feed:
    """What one row gets in one pass. Its logits are those after its last `draws` tokens."""

    row: Row
    tokens: list[int]
    source: int
    """Of its newest token where that is not on the host yet, else -1."""
    unread: int = 0
    """Tokens that were drawn for it and not read yet."""
    draws: int = 1
    """More than 1 where it is fed tokens that it is known to draw."""
    is_query: bool = False
    void: bool = False
    """The row ended with the token before."""

    @property
    def seals(self) -> bool:
        """Whether the pass fed the last token of a whole step. Known once the pass before it is read."""
        return self.row.finish == "step" and not (self.is_query or self.void or self.row.struck)


@dataclass(slots=True)
class Pass:
    """A pass that is launched, and what was fed in it."""

    feeds: list[Feed]
    drawn: Drawn
    """Of each feed as many columns as it draws."""
    kept: dict[Row, torch.Tensor] = field(default_factory=dict)
    """Logits [vocab] that must outlast the next launch: those after steps that were whole by then."""

    def places(self) -> list[int]:
        """Of each feed the row of the logits after its last token."""
        places: list[int] = self.drawn.rows[np.cumsum([feed.draws for feed in self.feeds]) - 1].tolist()
        return places


def gather(feeds: Sequence[Feed]) -> Tokens:
    """What the feeds are to a pass."""
    counts = [len(feed.tokens) for feed in feeds]
    rows, drawn = [feed.row for feed in feeds], [feed.row.sampled + feed.unread for feed in feeds]
    sources = np.array([feed.source for feed in feeds])
    last = np.cumsum(counts) - 1
    draws = np.array([feed.draws for feed in feeds])
    if len(feeds) < draws.sum():
        each = np.repeat(np.arange(len(feeds)), draws)
        place = np.arange(len(each)) - np.repeat(np.cumsum(draws) - draws, draws)
        last = last[each] - draws[each] + 1 + place
        sources = np.where(place == 0, sources[each], -1)
        rows = [rows[feed] for feed in each]
        drawn = (np.array(drawn)[each] + place).tolist()
    return Tokens(
        branch_ids=[feed.row.branch_id for feed in feeds if feed.row.branch_id is not None],
        counts=counts,
        ids=[token for feed in feeds for token in feed.tokens],
        logit_rows=last,
        sources=sources,
        uniforms=row_noise(rows, drawn),
    )
