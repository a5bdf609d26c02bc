"""Walks: simulations that go down the tree, several at once, and sample new steps on their way."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import ClassVar

from .children import FREE, Children
from .closing import close, exhausted
from .protocols import Expand
from .tree import Node, SearchTree


@dataclass(slots=True, eq=False)
class Walk:
    """One walk down the tree. It waits for a new child of `node`; every node of its path counts it in `virtual`."""

    node: Node


class Walks:
    """Runs up to `leaf_batch` walks at once. At each node a walk samples a new child (`_widens`) or follows an open one
    (`_select`), until a path ends.

    A sample that equals a known node is followed from there; where nothing is left there, the walk tries again from the
    parent. A node is exhausted when `max_duplicates` samples in a row gave nothing new (a line in new words that leads
    to a known state is new), or when the lines seen hold nearly all of the model's probability. A finished node is
    closed, and so is an exhausted node whose children are all closed; closed nodes are not visited again.
    """

    greedy: ClassVar[bool] = False
    merges: ClassVar[bool] = True
    ordered: ClassVar[bool] = True

    leaf_batch: int
    distinct: bool
    coverage: float | None
    max_duplicates: int
    seed: int | None

    def __init__(self, *, free: float = FREE) -> None:
        self._children = Children(distinct=self.distinct, coverage=self.coverage, seed=self.seed, free=free)
        self._running: deque[Walk] = deque()
        """In the order of the steps that they wait for, which is the order in which those are told."""
        self._queue: deque[Expand] = deque()
        self._leaving: list[Node] = []

    def ask(self, tree: SearchTree, room: int) -> list[Expand]:
        if not self._running:
            self._fill(tree)
        return [self._queue.popleft() for _ in range(min(room, len(self._queue)))]

    def tell(self, tree: SearchTree, expand: Expand, node: Node) -> list[Node]:
        walk = self._running.popleft()
        if node.id != expand.id:
            self._follow(tree, walk, node)
        elif node.terminal is None:
            self._arrive(tree, walk, node)
        else:
            unvisit(walk.node)
            self._finish(tree, node)
            self._close(tree, walk.node)
        self._fill(tree)
        leaving, self._leaving = self._leaving, []
        return leaving

    def _begin(self, tree: SearchTree) -> Node | None:
        """Where the next walk starts, an open node; None when no further walk is to start now."""
        raise NotImplementedError

    def _widens(self, node: Node) -> bool:
        """Whether the walk samples a new child of `node`, which is not exhausted."""
        raise NotImplementedError

    def _select(self, node: Node) -> Node | None:
        """The live child that the walk follows; None without any."""
        raise NotImplementedError

    def _arrive(self, tree: SearchTree, walk: Walk, node: Node) -> None:
        """The walk got the new child `node` of `walk.node`, whose path goes on."""
        raise NotImplementedError

    def _finish(self, tree: SearchTree, node: Node) -> None:
        """A walk ended in the new finished path of `node`, and is counted in no `virtual` any more."""
        raise NotImplementedError

    def _fill(self, tree: SearchTree) -> None:
        """Start walks until `leaf_batch` run, as far as there is anything to select."""
        while len(self._running) < self.leaf_batch:
            start = self._begin(tree)
            if start is None:
                break
            visit(start)
            if not self._descend(tree, Walk(start)):
                break

    def _descend(self, tree: SearchTree, walk: Walk) -> bool:
        """Walk on from `walk.node` to a node that gets a new child. False where all that is left below is under way
        already: then the walk ends without a visit."""
        node = walk.node
        while not self._samples(tree, node):
            child = self._select(node)
            if child is None:
                unvisit(node)
                return False
            child.virtual += 1
            node = child
        walk.node = node
        self._queue.append(self._children.want(tree, node))
        self._running.append(walk)
        return True

    def _samples(self, tree: SearchTree, node: Node) -> bool:
        """Whether the walk gets a new child of `node`. It does not where those under way leave too little unseen."""
        if exhausted(node, self.max_duplicates) or not self._children.ready(tree, node):
            return False
        return self._widens(node)

    def _follow(self, tree: SearchTree, walk: Walk, same: Node) -> None:
        """The sample equals the node `same`: go on from there, or, with nothing left there, from the parent again."""
        parent = walk.node
        if same.state == "open":
            if same.parent is not parent:
                unvisit(parent)
                visit(same)
            else:
                same.virtual += 1
            walk.node = same
            self._close(tree, parent)
            self._descend(tree, walk)
        elif self._close(tree, parent):
            unvisit(parent)
        else:
            self._descend(tree, walk)

    def _close(self, tree: SearchTree, node: Node) -> bool:
        """Close `node` and its ancestors where nothing is left below. Returns whether `node` was closed."""
        closed = close(tree, node, self.max_duplicates)
        self._leaving += [left for left in closed if left is not tree.root]
        return bool(closed)


def visit(node: Node) -> None:
    """Count a walk in every node from `node` to the root."""
    at: Node | None = node
    while at is not None:
        at.virtual += 1
        at = at.parent


def unvisit(node: Node) -> None:
    """Take a walk off every node from `node` to the root."""
    at: Node | None = node
    while at is not None:
        at.virtual -= 1
        at = at.parent
