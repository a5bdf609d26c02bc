"""Gumbel search: sequential halving among the next steps, one step decided after the other."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import ClassVar

from .children import coverage_option, distinct_option
from .closing import prune
from .families import Families
from .noise import Stream
from .options import option
from .protocols import Expand
from .select import choose, value
from .tree import Node, SearchTree
from .walks import Walk, Walks


@dataclass
class Gumbel(Walks):
    """Decides the path step by step, each by sequential halving over `considered` distinct children.

    With m children and n = `simulations`, a round gives each of the k children left, in turn,

        max(1, floor(n / (ceil(log2 m) · k)))

    simulations, and then keeps the ceil(k / 2) of largest g + sigma(Q); the others leave the search. The last one is
    taken, and its children are next, until the step taken ends its path. Here

        sigma(Q) = (c_visit + max_b N(b)) · c_scale · (Q - Qmin) / (Qmax - Qmin),

    N counts a child's visits, Q is the mean of its reward and of the values of the finished paths below it, and Qmin
    and Qmax are the least and largest value seen in the tree. A finished child keeps its place with its value and takes
    no simulation.

    g is the Gumbel-perturbed log-probability of the source, g(a) + log pi(a), conditioned on what is known: distinct
    samples come in the order of these numbers, largest first. So with p_i the probability of the i-th child drawn and u
    uniform, g_1 is Gumbel(0) and g_{i+1} is Gumbel(mu), mu = log(1 - p_1 - … - p_i), cut off above at g_i:

        g_{i+1} = mu - log(exp(mu - g_i) - log u).

    A simulation walks from its child to a finished path. At a node with n visits it samples new children while fewer
    than ceil(widen · n^widen_power) are open; then it follows the open child of largest

        pi'(a) - N(a) / (1 + sum_b N(b)),    pi' = softmax_a(log P(a) + sigma(Q(a))),

    with P the prior as in `mcts`; N counts the simulations under way, and a child without reward and visits has its
    parent's mean as Q. Nodes are exhausted and closed as in `mcts`. The draws depend on `seed` and the node alone. The
    answer is the finished path of highest value, then of most visits.

    Sources: Danihelka et al. 2022, "Policy improvement by planning with Gumbel" (equations 7, 8 and 14); Karnin et al.
    2013 (sequential halving); Kool et al. 2019, arXiv 1903.06059 (conditioned Gumbels).
    """

    name: ClassVar[str] = "gumbel"

    considered: int = option(8, "distinct children that a step is chosen from", minimum=1)
    simulations: int = option(64, "finished paths for the choice of a step", minimum=1)
    oversample: float = option(2.0, "samples tried at most, as a multiple of the children wanted", minimum=1)
    c_visit: float = option(50.0, "visits added to the scale of the values", minimum=0)
    c_scale: float = option(0.1, "scale of the values against the model's log-probabilities", minimum=0)
    widen: float = option(2.0, "open children of a node at its first visit", minimum=1)
    widen_power: float = option(0.5, "growth of the open children with visits", minimum=0, maximum=1)
    leaf_batch: int = option(8, "simulations at once", minimum=1, maximum=4096)
    distinct: bool = distinct_option()
    coverage: float | None = coverage_option()
    max_duplicates: int = option(4, "samples in a row without anything new that exhaust a node", minimum=1)
    seed: int | None = option(None, "of the draws; default that of the run, else 0")

    def __post_init__(self) -> None:
        super().__init__(free=1.0)  # the order of its children is to be that of samples without replacement
        self._families = Families(self.oversample, self._children)
        self._parent: Node | None = None
        """The end of the path that is decided so far, whose child is to be chosen; None before the first request."""
        self._left: list[Node] = []
        """Its children that are left."""
        self._noise: dict[Node, float] = {}
        """g of its children."""
        self._rounds = 1
        self._starts: deque[Node] = deque()
        """Where the round's simulations that have not begun yet start."""
        self._done = False
        self._least = math.inf
        self._most = -math.inf

    def ask(self, tree: SearchTree, room: int) -> list[Expand]:
        if self._parent is None:
            self._parent = tree.root
            self._families.want(tree, tree.root, self.considered)
        return self._families.take(room) if self._families else super().ask(tree, room)

    def tell(self, tree: SearchTree, expand: Expand, node: Node) -> list[Node]:
        if not self._families:
            return super().tell(tree, expand, node) + self._advance(tree)
        if node.id == expand.id:
            self._see(value(node))
            if node.terminal is not None:
                tree.backup(node, value(node))
        if self._families.tell(tree, expand, node) is None:
            return []
        return self._consider(tree) + self._advance(tree)

    def done(self, tree: SearchTree) -> str | None:
        return "finished" if self._done else None

    def best(self, tree: SearchTree) -> Node | None:
        return choose(tree)

    def _advance(self, tree: SearchTree) -> list[Node]:
        """Go on from round to round and from step to step until there is a sample to wait for, or the end; returns the
        nodes that fall out."""
        leaving: list[Node] = []
        while not (self._families or self._running or self._done):
            if self._starts:
                self._fill(tree)
            elif len(self._left) > 1:
                leaving += self._keep(tree, math.ceil(len(self._left) / 2))
                self._start_round()
            else:
                leaving += self._take(tree)
        return leaving

    def _consider(self, tree: SearchTree) -> list[Node]:
        """Begin the choice among the parent's children; returns those that are too many."""
        assert self._parent is not None
        self._noise = perturbed(self._parent, Stream(self.seed or 0, self._parent.id))
        self._left = [child for child in self._parent.children if child.state != "pruned"]
        leaving = self._keep(tree, self.considered)
        self._rounds = max(1, math.ceil(math.log2(len(self._left)))) if self._left else 1
        self._start_round()
        return leaving

    def _start_round(self) -> None:
        if len(self._left) > 1:
            each = max(1, self.simulations // (self._rounds * len(self._left)))
            self._starts.extend(child for _ in range(each) for child in self._left if child.state == "open")

    def _keep(self, tree: SearchTree, count: int) -> list[Node]:
        """Keep the `count` best of the children that are left; returns the nodes that fall out."""
        scale = self._scale(self._left)
        score = {child: self._noise[child] + scale * self._quality(child) for child in self._left}
        ranked = sorted(self._left, key=lambda child: (-score[child], child.ordinal))
        self._left = sorted(ranked[:count], key=lambda child: child.ordinal)
        return [left for child in ranked[count:] for left in prune(tree, child, "halving")]

    def _take(self, tree: SearchTree) -> list[Node]:
        """Decide for the last child and turn to its children. A path that has ended, or has nothing left below, ends
        the search."""
        leaving: list[Node] = []
        parent = self._parent
        assert parent is not None
        if parent.state == "open" and parent is not tree.root:
            leaving.append(tree.leave(parent, "expanded"))
        if not self._left or self._left[0].state != "open":
            self._done = True
            return leaving
        self._parent = self._left[0]
        if self._families.want(tree, self._parent, self.considered) is not None:
            leaving += self._consider(tree)
        return leaving

    def _begin(self, tree: SearchTree) -> Node | None:
        while self._starts:
            start = self._starts.popleft()
            if start.state == "open":
                return start
        return None

    def _arrive(self, tree: SearchTree, walk: Walk, node: Node) -> None:
        self._see(value(node))
        self._descend(tree, walk)

    def _finish(self, tree: SearchTree, node: Node) -> None:
        self._see(value(node))
        tree.backup(node, value(node))

    def _widens(self, node: Node) -> bool:
        allowed = math.ceil(self.widen * math.pow(node.visits + node.virtual, self.widen_power))
        return len(node.live) + node.pending < allowed

    def _select(self, node: Node) -> Node | None:
        """The live child that is furthest below its share of the improved policy; the first of equals."""
        live = node.live
        if len(live) < 2:
            return live[0] if live else None
        scale = self._scale(live)
        logits = [
            (child.logprob / child.tokens if child.tokens else 0.0) + scale * self._quality(child) for child in live
        ]
        top = max(logits)
        shares = [math.exp(logit - top) for logit in logits]
        total = sum(shares)
        entries = 1 + sum(child.visits + child.virtual for child in live)
        lacks = [
            share / total - (child.visits + child.virtual) / entries for child, share in zip(live, shares, strict=True)
        ]
        return live[lacks.index(max(lacks))]

    def _scale(self, children: list[Node]) -> float:
        """What sigma multiplies the normalised value with."""
        return (self.c_visit + max((child.visits + child.virtual for child in children), default=0)) * self.c_scale

    def _quality(self, child: Node) -> float:
        """Q of a child, normalised to [0, 1] over the tree."""
        if not self._most > self._least:
            return 0.0
        if child.terminal is not None or child.reward is None:
            mean = child.mean if child.visits else child.parent.mean if child.parent is not None else None
            q = self._least if mean is None else mean
        else:
            q = (child.reward + child.total) / (1 + child.visits)
        return (q - self._least) / (self._most - self._least)

    def _see(self, worth: float) -> None:
        self._least = min(self._least, worth)
        self._most = max(self._most, worth)


def perturbed(node: Node, stream: Stream) -> dict[Node, float]:
    """Gumbel-perturbed log-probabilities of the node's children, given that their order is the order of these."""
    found: dict[Node, float] = {}
    mass, cut = 1.0, math.inf
    for child in node.children:
        location = math.log(max(mass, 1e-12))
        cut = location - math.log(math.exp(location - cut) - math.log(stream.uniform()))
        found[child] = cut
        mass -= math.exp(child.logprob)
    return found
