"""Which nodes give up their KV first when blocks run out."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator

from .rows import Kept


def eviction_order(kept: Iterable[Kept], busy: Iterable[Kept]) -> Iterator[Kept]:
    """The nodes that hold KV, without the root: ended paths, then from the leaves upward, the least value first.

    `kept`: longest unused first, which also settles equal values. `busy`: the parents of growing rows. A node above
    another that holds KV shares its blocks, so evicting it first would free little and cost a recomputation; those that
    are still above something come last.
    """
    nodes = [node for node in kept if node.branch_id is not None and node.parent is not None]
    holding = {id(node): (place, node) for place, node in enumerate(nodes)}
    below: dict[int, int] = {}
    for parent in (*busy, *(node.parent for node in nodes)):
        below[id(parent)] = below.get(id(parent), 0) + 1
    leaves = [_entry(place, node) for place, node in holding.values() if node.logits is None or not below.get(id(node))]
    heapq.heapify(leaves)
    while leaves:
        *_, node = heapq.heappop(leaves)
        del holding[id(node)]
        yield node
        above = id(node.parent)
        below[above] -= 1
        if not below[above] and above in holding:
            heapq.heappush(leaves, _entry(*holding[above]))
    yield from sorted((node for _, node in holding.values()), key=lambda node: -node.length)


def _entry(place: int, node: Kept) -> tuple[bool, float, int, Kept]:
    """Sorts ended paths first, then by value, then by use; no two have the same place."""
    return node.logits is not None, node.value, place, node
