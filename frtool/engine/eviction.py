"""Which nodes lose their KV first when blocks run out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from .rows import Kept


def eviction_order(nodes: Iterable[Kept], busy: Iterable[Kept]) -> Iterator[Kept]:
    """The nodes that hold KV, without the root: ended paths, then from the leaves upward, longest unused first.

    `nodes` come longest unused first; `busy` are the parents of steps under way. A node above another that holds KV
    shares its blocks, so evicting it first would free nothing and cost a recomputation.
    """
    holding = [node for node in nodes if node.branch_id is not None and node.parent is not None]
    below: dict[int, int] = {}
    for node in (*busy, *(node.parent for node in holding)):
        below[id(node)] = below.get(id(node), 0) + 1
    held = {id(node): node for node in holding}
    leaves = deque(node for node in holding if node.logits is None)
    leaves.extend(node for node in holding if node.logits is not None and not below.get(id(node)))
    while leaves:
        node = leaves.popleft()
        yield node
        above = node.parent
        below[id(above)] -= 1
        if not below[id(above)] and id(above) in held:
            leaves.append(held[id(above)])
