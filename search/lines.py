"""The lines that a model has written after a node, and the choice of one that it has not."""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import attrgetter

from .noise import Stream
from .protocols import Step

_LEAST = 2.0**-20
"""A share of a prefix's probability that is not looked into: float32 edges are no better than some 2^-22."""
_END = -1
_low = attrgetter("low")


@dataclass(slots=True, eq=False)
class Prefix:
    """Where a line may go on, after `token`, whose edges are `low` and `high` as in `Step.intervals`."""

    token: int
    low: float
    high: float
    ahead: dict[int | float, Prefix] = field(default_factory=dict)
    """By the next token; by its lower edge where it is an end token, whose number nobody needs."""
    leaving: list[float] = field(default_factory=list)
    """The numbers of the lines under way that leave it here."""
    rest: float = 1.0
    """Probability, given the prefix, of the lines that were not seen; 0 where the prefix is a whole line."""
    free: float = 1.0
    """The part of it where no line is under way."""
    tail: list[tuple[int, float, float, float]] | None = None
    """Where one line alone went on, its tokens after this one, the last first, with their edges and what is unseen
    after them: they become prefixes when somebody comes by."""

    def lengthen(self, tail: list[tuple[int, float, float, float]]) -> None:
        """Go on by the tokens of `tail`, of which the first becomes a prefix."""
        token, low, high, rest = tail.pop()
        self.ahead[_key(token, low)] = Prefix(token, low, high, rest=rest, free=rest, tail=tail)

    def unroll(self) -> None:
        """Make a prefix of the next token of the tail."""
        if self.tail:
            self.lengthen(self.tail)
        self.tail = None

    def is_free(self, edge: float, width: float) -> bool:
        return not self.leaving or not any(edge <= number < edge + width for number in self.leaving)

    def measure(self) -> None:
        """Set `rest` and `free` from those of the prefixes ahead."""
        rest = free = edge = 0.0
        leaving = self.leaving
        for ahead in sorted(self.ahead.values(), key=_low) if len(self.ahead) > 1 else self.ahead.values():
            low, high = ahead.low, ahead.high
            width = low - edge
            if width > _LEAST:
                rest += width
                if not leaving or self.is_free(edge, width):
                    free += width
            if low > edge:
                edge = low
            width = high - edge
            if width * ahead.rest > _LEAST:
                rest += width * ahead.rest
                free += width * ahead.free
            if high > edge:
                edge = high
        width = 1.0 - edge
        if width > _LEAST:
            rest += width
            if not leaving or self.is_free(edge, width):
                free += width
        self.rest, self.free = rest, free

    def find(self, target: float) -> tuple[float, Prefix | None] | None:
        """Where as much as `target` is free before it: the number that leaves the prefix there, or the same in the
        measure of the prefix ahead, and that. None where rounding has left nothing."""
        self.unroll()
        edge = 0.0
        for ahead in sorted(self.ahead.values(), key=_low):
            width = ahead.low - edge
            if width > _LEAST and self.is_free(edge, width):
                if target < width:
                    return edge + target, None
                target -= width
            edge = max(edge, ahead.low)
            width = ahead.high - edge
            if width * ahead.rest > _LEAST:
                if target < width * ahead.free:
                    return target / width, ahead
                target -= width * ahead.free
            edge = max(edge, ahead.high)
        width = 1.0 - edge
        if width > _LEAST and self.is_free(edge, width) and target < width:
            return edge + target, None
        return None


class Lines:
    """A trie of what was seen after one node, with the probability of all that was not.

    A line is the tokens of a step, its end token included. The generator draws each by one uniform number, so its
    tokens' intervals, nested, are an interval of [0, 1] that is as long as the line is probable (arithmetic coding).
    `draw` turns a number in [0, 1) into a place in what the seen lines leave: a prefix that was seen and a number for
    the token at which the new line leaves it. So a new line comes as often as the model writes it when it is told not
    to write those seen: sampling without replacement.

    Lines that are under way together leave different prefixes, or the same one between other tokens that were seen. So
    they differ, whatever they will be. Each follows the model within what the others leave it.

    Sources: Vilnis et al. 2023, arXiv 2210.15458 (sampling by code points of an arithmetic code); Shi et al. 2020,
    arXiv 2002.09067 (UniqueRandomizer: the trie of what was sampled, with its probability taken away).
    """

    def __init__(self, seed: int, node_id: str, coverage: float = 1.0) -> None:
        """`coverage` is the probability that the seen lines must hold together to be taken for all."""
        self._coverage = coverage
        self.told = 0
        """Steps, whether or not they gave their intervals."""
        self.seen = 0
        """Distinct lines."""
        self._root = Prefix(_END, 0.0, 1.0)
        self._stream = Stream(seed, f"{node_id}/lines")
        self._under_way: dict[int, tuple[list[Prefix], float]] = {}
        """By ordinal, the prefixes up to the one that it leaves, and its number there."""

    @property
    def rest(self) -> float:
        """Probability, under the generator's own sampling options, of the lines that were not seen."""
        return self._root.rest

    @property
    def covered(self) -> bool:
        return 1.0 - self.rest >= self._coverage

    @property
    def free(self) -> float:
        """The part of it where no line is under way."""
        return self._root.free

    def draw(self, ordinal: int) -> tuple[tuple[int, ...], float]:
        """A prefix and a number for the token after it, for child `ordinal` to be a line that was neither seen nor is
        under way. Where there is no such, no prefix and any number."""
        number = self._stream.uniform()
        target = number * self._root.free
        path = [self._root]
        while (found := path[-1].find(target)) is not None:
            target, ahead = found
            if ahead is None:
                path[-1].leaving.append(target)
                self._under_way[ordinal] = path, target
                _measure(path)
                return tuple(prefix.token for prefix in path[1:]), target
            path.append(ahead)
        return (), number

    def has_drawn(self, ordinal: int) -> bool:
        """Whether child `ordinal` was drawn here and is under way."""
        return ordinal in self._under_way

    def add(self, step: Step) -> bool:
        """Add the line of a step. Whether it was new; without intervals nobody knows, and it is not."""
        self.told += 1
        left, number = self._under_way.pop(step.ordinal, ([self._root], None))
        if number is not None:
            left[-1].leaving.remove(number)
        path = self._walk(step)
        known, novel = len(path) - 1, False
        if 2 * known < len(step.intervals):
            tail, novel = _tail(step, known)
            if tail:
                path[-1].lengthen(tail)
            if not novel:
                _measure(left)
                return False
        elif known:
            line = path.pop()
            novel = line.rest > 0
            line.rest = line.free = 0.0
        if len(path) < len(left) or path[len(left) - 1] is not left[-1]:
            _measure(left)  # it went another way than it was told to, else the way is measured below
        _measure(path)
        self.seen += novel
        return novel

    def _walk(self, step: Step) -> list[Prefix]:
        """The prefixes of a line that are known, the empty one first."""
        at = self._root
        path = [at]
        ids, edges = step.ids, step.intervals
        for place in range(len(edges) // 2):
            low, high = edges[2 * place], edges[2 * place + 1]
            at.unroll()
            ahead = at.ahead.get(_key(ids[place] if place < len(ids) else _END, low))
            if ahead is None:
                break
            if low < high:  # where a pass does not give the same bits twice, so that a seen token came again
                ahead.low, ahead.high = min(ahead.low, low), max(ahead.high, high)
            at = ahead
            path.append(at)
        return path


def _key(token: int, low: float) -> int | float:
    """What a token is found by among those ahead: for an end token below 0, where no token has its number."""
    return token if token != _END else low - 1.0


def _tail(step: Step, known: int) -> tuple[list[tuple[int, float, float, float]], bool]:
    """A line after its first `known` tokens as a `Prefix.tail`, and whether that is all of it: it ends before a token
    that no number draws."""
    ids, edges = step.ids, step.intervals
    tail: list[tuple[int, float, float, float]] = []
    whole, rest = True, 0.0
    for place in range(len(edges) // 2 - 1, known - 1, -1):
        low, high = edges[2 * place], edges[2 * place + 1]
        if not low < high:
            tail.clear()
            whole, rest = False, 1.0
            continue
        tail.append((ids[place] if place < len(ids) else _END, low, high, rest))
        if whole:  # as `measure` does with one prefix ahead
            part, rest = (high - low) * rest, low if low > _LEAST else 0.0
            if part > _LEAST:
                rest += part
            if 1.0 - high > _LEAST:
                rest += 1.0 - high
    return tail, whole


def _measure(path: list[Prefix]) -> None:
    for prefix in reversed(path):
        prefix.measure()
