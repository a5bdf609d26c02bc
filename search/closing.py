"""Taking nodes out of the search: exhausted ones, and whole subtrees."""

from __future__ import annotations

from .tree import Node, SearchTree


def exhausted(node: Node, max_duplicates: int) -> bool:
    """Whether sampling more children is not worth it: `max_duplicates` samples in a row gave nothing new, or the
    lines seen, or where those are not known the children, hold nearly all of the model's probability."""
    return node.duplicates >= max_duplicates or node.covered


def close(tree: SearchTree, node: Node, max_duplicates: int) -> list[Node]:
    """Close `node`, and then its ancestors, as long as they are exhausted and nothing is left below; returns the
    closed nodes, from below. The root may be among them."""
    closed = []
    at: Node | None = node
    while at is not None and not at.live and not at.pending and exhausted(at, max_duplicates):
        closed.append(tree.leave(at, "closed", "exhausted"))
        at = at.parent
    return closed


def prune(tree: SearchTree, node: Node, why: str) -> list[Node]:
    """Take `node` and every open node below it out of the search; returns them."""
    below, pruned = [node], []
    while below:
        at = below.pop()
        below += at.children
        if at.state == "open":
            pruned.append(tree.leave(at, "pruned", why))
    return pruned
