"""What the engine knows of a node that it can continue, and of a step that grows."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from .steps import StepText

if TYPE_CHECKING:
    from .root import Root
    from .swap import HostCopy

# After a delimiter: the path ends there if the model gives the end tokens more than this.
_END_PROBABILITY = 0.5


@dataclass(slots=True, eq=False)
class Kept:
    """A node. All tokens of its path are in the KV of `branch_id`, unless that was evicted or released (None)."""

    id: str
    parent: Kept | None
    tokens: list[int]
    """Its own; the root's are the prompt."""
    length: int
    """Tokens of the whole path, prompt included."""
    tail: tuple[int, ...]
    """Last tokens that the text of the next one depends on."""
    logits: torch.Tensor | None
    """[vocab]: of the token that follows, from which each child draws its first. None where the path has ended."""
    branch_id: int | None
    released: bool = False
    value: float = 0.0
    """What the scorer thinks of it."""
    unread: bool = False
    """It was grown in another process: neither its logits nor its KV are here yet."""
    pending: bool = False
    """It is a root whose prompt is yet to be read."""
    host: HostCopy | None = None
    """Of its own tokens, while it is evicted."""

    def anchor(self) -> tuple[Kept | None, list[Kept]]:
        """The nearest node up the path whose KV is there, None when there is none, and the nodes below it."""
        missing: list[Kept] = []
        node: Kept | None = self
        while node is not None and node.branch_id is None:
            missing.append(node)
            node = node.parent
        return node, missing[::-1]


@dataclass(slots=True, eq=False)
class Row:
    """A step under way, from its submission until it is kept or dropped."""

    root: Root
    parent: Kept
    ordinal: int
    key: int
    """Of its sampling noise."""
    text: StepText
    most: int
    """Tokens that its text may have."""
    greedy: bool = False
    """It takes the likeliest token each time."""
    known: tuple[int, ...] = ()
    """Tokens that it begins with."""
    course: tuple[float, ...] = ()
    """What decides its first tokens in the place of its noise; see `noise`."""
    tokens: list[int] = field(default_factory=list)
    """Of its text; the end token is not among them."""
    sampled: int = 0
    """Tokens drawn, the end token included."""
    logprob: float = 0.0
    intervals: list[float] = field(default_factory=list)
    """Lower and upper edge of each token drawn, one after the other, where it has a course; see `Step`."""
    finish: str | None = None
    """None while it grows, then as in `Step`."""
    reward: float | None = None
    logits: torch.Tensor | None = None
    """[vocab]: of the token after a whole step."""
    branch_id: int | None = None
    """None while it waits for room."""
    prefix: list[int] = field(default_factory=list)
    """Tokens of the path above that were not in KV when the row got its branch."""
    fed: int = 0
    """How many of `prefix` and `tokens` are in KV."""
    host: HostCopy | None = None
    """Of its tokens, while it waits or when it was evicted as a finished step."""
    struck: bool = False
    """Nobody wants it any more; what a pass under way gives for it is not read."""

    @property
    def name(self) -> str:
        return f"{self.parent.id}.{self.ordinal}"

    @property
    def length(self) -> int:
        """Tokens of the path to the end of this step, prompt included."""
        return self.parent.length + len(self.tokens)

    def ahead(self, most: int, end_ids: Collection[int], unread: int = 0) -> list[int]:
        """Up to `most` tokens that are known before they are drawn, so that they can be fed with the last one drawn,
        of which `unread` are not among `tokens` yet; none that may end it."""
        first = self.sampled + unread
        if len(self.known) <= first:
            return []
        room = min(most, self.most - len(self.tokens) - unread - 1)
        known = list(self.known[first : first + max(room, 0)])
        return known[: next((place for place, token in enumerate(known) if token in end_ids), len(known))]

    def seal(self, end: float, logits: torch.Tensor) -> None:
        """Its step is whole: it can go on from `logits` [vocab], unless the path ends there: by the probability
        `end` that the model gives its end tokens, or because it is as long as it may be."""
        if end > _END_PROBABILITY:
            self.finish = "end"
        elif self.length >= self.root.max_length:
            self.finish = "length"
        else:
            self.logits = logits

    def unfed(self) -> list[int]:
        """Tokens that are to go into KV next."""
        if not self.prefix:
            return self.tokens[self.fed :]
        return (self.prefix + self.tokens)[self.fed :]
