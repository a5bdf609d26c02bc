"""Which nodes lose their KV first when blocks run out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from .rows import Kept


def eviction_order(nodes: Iterable[Kept], busy: Iterable[Kept]) -> Iterator[Kept]:
    """The nodes that hold KV, without the root: ended paths, then from the leaves upward, longest unused first.

    `nodes` come longest unused first; `busy` are the parents of steps that grow. A node above another that holds KV
    shares its blocks, so evicting it first would free little and cost a recomputation; such nodes come last.
    """
    holding = {id(node): node for node in nodes if node.branch_id is not None and node.parent is not None}
    below: dict[int, int] = {}
    for parent in (*busy, *(node.parent for node in holding.values())):
        below[id(parent)] = below.get(id(parent), 0) + 1
    leaves = deque(node for node in holding.values() if node.logits is None)
    leaves.extend(node for node in holding.values() if node.logits is not None and not below.get(id(node)))
    while leaves:
        node = leaves.popleft()
        del holding[id(node)]
        yield node
        above = id(node.parent)
        below[above] -= 1
        if not below[above] and above in holding:
            leaves.append(holding[above])
    yield from sorted(holding.values(), key=lambda node: -node.length)
