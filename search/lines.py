"""The lines that a model has written after a node, and the choice of one that it has not."""

from __future__ import annotations

from collections.abc import Iterator

from .noise import Stream
from .protocols import Step

_LEAST = 2.0**-20
"""A share of a prefix's probability that is not looked into: float32 edges are no better than some 2^-22."""
_END = -1
_GOLDEN = (5**0.5 - 1) / 2


class Prefix:
    """Where a line may go on, after `token`, whose edges are `low` and `high` as in `Step.intervals`."""

    __slots__ = ("ahead", "high", "low", "rest", "token")

    def __init__(self, token: int, low: float, high: float) -> None:
        self.token = token
        self.low = low
        self.high = high
        self.ahead: dict[int | float, Prefix] = {}
        """By the next token; by its lower edge where it is an end token, whose number nobody needs."""
        self.rest = 1.0
        """Probability, given the prefix, of the lines that were not seen; 0 where the prefix is a whole line."""

    def parts(self) -> Iterator[tuple[float, float, float, Prefix | None]]:
        """What is not seen, in the order of the edges: where it begins and how wide it is, the unseen share of that,
        and the prefix that it belongs to; None where no token was seen."""
        edge = 0.0
        for ahead in sorted(self.ahead.values(), key=lambda ahead: ahead.low):
            if ahead.low - edge > _LEAST:
                yield edge, ahead.low - edge, 1.0, None
            begin = max(edge, ahead.low)
            if (ahead.high - begin) * ahead.rest > _LEAST:
                yield begin, ahead.high - begin, ahead.rest, ahead
            edge = max(edge, ahead.high)
        if 1.0 - edge > _LEAST:
            yield edge, 1.0 - edge, 1.0, None

    def find(self, target: float) -> tuple[float, Prefix | None] | None:
        """Where as much as `target` is not seen before it: the number that leaves the prefix there, or the prefix ahead
        and the same in its own measure. None where rounding has left nothing."""
        for edge, width, share, ahead in self.parts():
            if target < width * share:
                return (edge + target, None) if ahead is None else (target / width, ahead)
            target -= width * share
        return None


class Lines:
    """A trie of what was seen after one node, with the probability of all that was not.

    A line is the tokens of a step, its end token included. The generator draws each by one uniform number, so its
    tokens' intervals, nested, are an interval of [0, 1] that is as long as the line is probable (arithmetic coding).
    `draw` turns a number in [0, 1) into a place in what the seen lines leave free: a prefix that was seen and a number
    for the token at which the new line leaves it. So a new line comes as often as the model writes it when it is told
    not to write those seen: sampling without replacement.

    Draws that are waited for together are points of one golden-ratio sequence with a random start. Each is uniform on
    its own, and no two come near each other; draws that come one after the other are independent.

    Sources: Vilnis et al. 2023, arXiv 2210.15458 (arithmetic sampling: even code points); Shi et al. 2020,
    arXiv 2002.09067 (UniqueRandomizer: the trie of what was sampled, with its probability taken away).
    """

    def __init__(self, seed: int, node_id: str, *, spread: bool = True) -> None:
        self.told = 0
        """Steps, whether or not they gave their intervals."""
        self.seen = 0
        """Distinct lines."""
        self._root = Prefix(_END, 0.0, 1.0)
        self._stream = Stream(seed, f"{node_id}/lines")
        self._spread = spread
        self._point = 0.0

    @property
    def rest(self) -> float:
        """Probability, under the generator's own sampling options, of the lines that were not seen."""
        return self._root.rest

    def add(self, step: Step) -> bool:
        """Add the line of a step. Whether it was new; without intervals nobody knows, and it is not."""
        self.told += 1
        path = [self._root]
        edges = zip(step.intervals[::2], step.intervals[1::2], strict=True)
        for place, (low, high) in enumerate(edges):
            token = step.ids[place] if place < len(step.ids) else _END
            key = token if token != _END else low - 1.0  # below 0, where no token has its number
            ahead = path[-1].ahead.get(key)
            if ahead is None:
                if not low < high:
                    return False
                ahead = path[-1].ahead[key] = Prefix(token, low, high)
            elif low < high:  # where a pass does not give the same bits twice, so that a seen token came again
                ahead.low, ahead.high = min(ahead.low, low), max(ahead.high, high)
            path.append(ahead)
        if len(path) == 1 or not path[-1].rest:
            return False
        path.pop().rest = 0.0
        for prefix in reversed(path):
            prefix.rest = sum(width * share for _, width, share, _ in prefix.parts())
        self.seen += 1
        return True

    def draw(self, *, alone: bool) -> tuple[tuple[int, ...], float | None]:
        """A prefix and a number for the token after it, of a line that was not seen; `alone` where no other draw is
        waited for. Nothing and None where every line was seen."""
        if alone or not self._spread:
            self._point = self._stream.uniform()
        else:
            self._point = (self._point + _GOLDEN) % 1.0
        at, target = self._root, self._point * self._root.rest
        prefix: list[int] = []
        while (found := at.find(target)) is not None:
            target, ahead = found
            if ahead is None:
                return tuple(prefix), target
            prefix.append(ahead.token)
            at = ahead
        return tuple(prefix), None
