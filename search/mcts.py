"""Monte Carlo tree search over steps: PUCT, rollouts in the tree, progressive widening."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import ClassVar

from .options import option
from .protocols import Expand
from .select import choose, value
from .tree import Node, SearchTree


@dataclass(slots=True, eq=False)
class _Simulation:
    """One walk from the root to an end. It waits for a new child of `node`; every node of its path counts it in
    `virtual`."""

    node: Node


@dataclass
class MCTS:
    """Each simulation walks from the root and always ends in a finished path.

    At a node with n visits, this one included, it samples new children while fewer than ceil(widen · n^widen_power) of
    them are open (progressive widening). Then it follows the open child of largest

        (Q - Qmin) / (Qmax - Qmin) + c_puct · P · sqrt(n) / (1 + N)

    where P is the child's prior (exp of its mean log-probability a token, normalised over siblings), N its visits,
    Qmin and Qmax the least and largest value seen in the tree. With backup 'mean'

        Q = (trust · reward + sum of the values backed up) / (trust + N),

    so that the scorer's value of the step counts as `trust` visits; with 'max' Q is the largest of all these values. A
    child without either has its reward as Q, or its parent's mean where nothing gave a reward.
    New nodes are treated alike (rollout in the tree, not outside of it), until a path ends: its value is backed up. A
    simulation under way counts as `virtual_loss` visits of value Qmin on its path, so that the `leaf_batch` simulations
    that run at once spread.

    A node is exhausted when `max_duplicates` samples in a row gave nothing new, or when its children hold 99 % of the
    model's probability. A finished node is closed, and so is an exhausted node whose children are all closed; closed
    nodes are not visited again. The answer is the finished path of highest value, then of most visits.

    Sources: Silver et al. 2017 (PUCT); Coulom 2007 and Couëtoux et al. 2011 (widening); Schrittwieser et al. 2020,
    arXiv 1911.08265 (normalised Q); Chaslot et al. 2008 (virtual loss).
    """

    name: ClassVar[str] = "mcts"
    greedy: ClassVar[bool] = False
    merges: ClassVar[bool] = True
    ordered: ClassVar[bool] = True

    c_puct: float = option(0.5, "weight of the prior against the value", minimum=0)
    widen: float = option(2.0, "open children of a node at its first visit", minimum=1)
    widen_power: float = option(0.5, "growth of the open children with visits", minimum=0, maximum=1)
    leaf_batch: int = option(8, "simulations at once", minimum=1, maximum=4096)
    virtual_loss: float = option(1.0, "visits of the least value that a running simulation counts for", minimum=0)
    trust: float = option(8.0, "visits that the scorer's value of a step counts for", minimum=0)
    backup: str = option("mean", "value of a node from those below it", choices=("mean", "max"))
    max_duplicates: int = option(4, "samples in a row without anything new that exhaust a node", minimum=1)
    simulations: int | None = option(None, "stop after so many finished paths; default only the budget", minimum=1)
    accept: float | None = option(
        None, "stop at a finished path of this value or more; default never", minimum=0, maximum=1
    )

    def __post_init__(self) -> None:
        self._running: deque[_Simulation] = deque()
        """In the order of the steps that they wait for, which is the order in which those are told."""
        self._queue: deque[Expand] = deque()
        self._backups = 0
        self._accepted = False
        self._least = math.inf
        self._most = -math.inf
        self._leaving: list[Node] = []

    def ask(self, tree: SearchTree, room: int) -> list[Expand]:
        if not self._running:
            self._fill(tree)
        return [self._queue.popleft() for _ in range(min(room, len(self._queue)))]

    def tell(self, tree: SearchTree, expand: Expand, node: Node) -> list[Node]:
        simulation = self._running.popleft()
        if node.id == expand.id:
            self._see(value(node))
            if node.terminal is None:
                self._descend(tree, simulation)
            else:
                node.virtual += 1
                simulation.node = node
                self._finish(tree, simulation)
        else:
            self._follow(tree, simulation, node)
        self._fill(tree)
        leaving, self._leaving = self._leaving, []
        return leaving

    def done(self, tree: SearchTree) -> bool:
        return self._accepted or (self.simulations is not None and self._backups >= self.simulations)

    def best(self, tree: SearchTree) -> Node | None:
        return choose(tree)

    def _fill(self, tree: SearchTree) -> None:
        """Start simulations until `leaf_batch` run, as far as there is anything to select."""
        while len(self._running) < self.leaf_batch and tree.root.state == "open":
            if self.simulations is not None and self._backups + len(self._running) >= self.simulations:
                break
            tree.root.virtual += 1
            if not self._descend(tree, _Simulation(tree.root)):
                break

    def _descend(self, tree: SearchTree, simulation: _Simulation) -> bool:
        """Walk on from `simulation.node` to a node that gets a new child. False where all that is left below is under
        way already: then the simulation ends without a visit."""
        node = simulation.node
        while not self._widens(node):
            child = self._select(node)
            if child is None:
                _unvisit(node)
                return False
            child.virtual += 1
            node = child
        simulation.node = node
        self._wait(tree, simulation)
        return True

    def _wait(self, tree: SearchTree, simulation: _Simulation) -> None:
        self._queue.append(tree.want(simulation.node))
        self._running.append(simulation)

    def _follow(self, tree: SearchTree, simulation: _Simulation, same: Node) -> None:
        """The sample equals the node `same`: go on from there, or, with nothing left there, from the parent again."""
        parent = simulation.node
        if same.state == "open":
            if same.parent is not parent:
                _unvisit(parent)
                _visit(same)
            else:
                same.virtual += 1
            simulation.node = same
            self._close(tree, parent)
            self._descend(tree, simulation)
        elif self._close(tree, parent):
            _unvisit(parent)
        else:
            self._descend(tree, simulation)

    def _finish(self, tree: SearchTree, simulation: _Simulation) -> None:
        node = simulation.node
        worth = value(node)
        _unvisit(node)
        tree.backup(node, worth)
        self._backups += 1
        self._accepted = self.accept is not None and worth >= self.accept
        assert node.parent is not None, "the root is never a finished path"
        self._close(tree, node.parent)

    def _close(self, tree: SearchTree, node: Node) -> bool:
        """Close `node`, and then its ancestors, where nothing is left below. Returns whether `node` was closed."""
        closed = None
        at: Node | None = node
        while at is not None and not at.live and not at.pending and self._exhausted(at):
            tree.leave(at, "closed", "exhausted")
            if at is not tree.root:
                self._leaving.append(at)
            closed = closed or at
            at = at.parent
        return closed is node

    def _exhausted(self, node: Node) -> bool:
        return node.duplicates >= self.max_duplicates or node.covered

    def _widens(self, node: Node) -> bool:
        if self._exhausted(node):
            return False
        allowed = math.ceil(self.widen * math.pow(node.visits + node.virtual, self.widen_power))
        return len(node.live) + node.pending < allowed

    def _select(self, node: Node) -> Node | None:
        """The live child of largest PUCT value; the first of equals. None without live children."""
        spread = self._most - self._least
        scale = 1 / spread if spread > 0 else 0.0
        least, loss, trust = self._least, self.virtual_loss, self.trust
        explore = self.c_puct * math.sqrt(node.visits + node.virtual) / node.weights if node.weights else 0.0
        take_peak = self.backup == "max"
        unknown = node.total / node.visits if node.visits else least
        best, highest = None, -math.inf
        for child in node.live:
            reward, visits = child.reward, child.visits
            believed = 0.0 if reward is None else trust
            if take_peak:
                total = (believed + visits) * max(reward if reward is not None and trust else 0.0, child.peak)
            else:
                total = (believed * reward if reward is not None else 0.0) + child.total
            lost = loss * child.virtual
            weight = believed + visits + lost
            if weight:
                q = ((total + lost * least) / weight - least) * scale
            else:
                q = ((unknown if reward is None else reward) - least) * scale
            puct = q + explore * child.weight / (1 + visits + child.virtual)
            if puct > highest:
                best, highest = child, puct
        return best

    def _see(self, worth: float) -> None:
        self._least = min(self._least, worth)
        self._most = max(self._most, worth)


def _visit(node: Node) -> None:
    at: Node | None = node
    while at is not None:
        at.virtual += 1
        at = at.parent


def _unvisit(node: Node) -> None:
    at: Node | None = node
    while at is not None:
        at.virtual -= 1
        at = at.parent
