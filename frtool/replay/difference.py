"""Where two recorded searches part."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from frtool.search.events import Event, NodeAdded
from frtool.view.model import TreeModel

TOLERANCE = 1e-4
"""Figures this close, absolutely or relatively, count as the same: other devices and library versions round so."""
THE_END = "the end"
"""In the place of a node's id: the search's last event."""
_EXACT = ("text", "tokens", "terminal", "answer", "verified", "duplicate_of")
_FIGURES = ("logprob", "prior", "reward")


@dataclass(frozen=True, slots=True)
class Difference:
    """The first thing that differs. `field` is None where the node stands in one search only; then `a` and `b` are its
    text, None on the side that lacks it."""

    node: str
    field: str | None
    a: Any
    b: Any


@dataclass(frozen=True, slots=True)
class Comparison:
    """`same` steps are the same in both searches. `deviation` is the largest distance between the figures of those, 0
    where they are equal to the last bit."""

    difference: Difference | None
    same: int
    deviation: float


def added(events: list[Event]) -> dict[str, NodeAdded]:
    """The steps by id, in the order in which they came."""
    return {event.id: event for event in events if isinstance(event, NodeAdded)}


def compare_trees(a: list[Event], b: list[Event], ignore: Collection[str] = ()) -> Comparison:
    """Compare step by step in the order of `a`, then what only `b` has, then visits, values and prunings.

    Fields in `ignore` are left out."""
    left, right = added(a), added(b)
    first: Difference | None = None
    same, deviation = 0, 0.0
    for node_id in dict.fromkeys([*left, *right]):
        difference = difference_of(node_id, left.get(node_id), right.get(node_id), ignore)
        if difference is None:
            same += 1
            deviation = max(deviation, _distance(left[node_id], right[node_id]))
        first = first or difference
    return Comparison(first or _outcomes(_grown(a), _grown(b)), same, deviation)


def difference_of(
    node_id: str, a: NodeAdded | None, b: NodeAdded | None, ignore: Collection[str] = ()
) -> Difference | None:
    """What differs between two records of one step, of which one may be missing."""
    if a is None or b is None:
        return Difference(node_id, None, a and a.text, b and b.text)
    name = _differing_field(a, b, ignore)
    return Difference(node_id, name, getattr(a, name), getattr(b, name)) if name else None


def _differing_field(a: NodeAdded, b: NodeAdded, ignore: Collection[str]) -> str | None:
    """The first field that differs, figures by more than the tolerance."""
    for name in _EXACT:
        if name not in ignore and getattr(a, name) != getattr(b, name):
            return name
    for name in _FIGURES:
        if name not in ignore and not _close(getattr(a, name), getattr(b, name)):
            return name
    return None


def _grown(events: list[Event]) -> TreeModel:
    model = TreeModel()
    for event in events:
        model.apply(event)
    return model


def _outcomes(a: TreeModel, b: TreeModel) -> Difference | None:
    for node in a.walk():
        other = b.nodes[node.id]
        for name in ("visits", "pruned"):
            if getattr(node, name) != getattr(other, name):
                return Difference(node.id, name, getattr(node, name), getattr(other, name))
        if not _close(node.value, other.value):
            return Difference(node.id, "value", node.value, other.value)
    return None


def _distance(a: NodeAdded, b: NodeAdded) -> float:
    pairs = ((getattr(a, name), getattr(b, name)) for name in _FIGURES)
    return max((abs(x - y) for x, y in pairs if x is not None and y is not None and x - y == x - y), default=0.0)


def _close(a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE) or (a != a and b != b)
