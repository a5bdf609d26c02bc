"""Adaptive branching: Thompson sampling decides whether a step gets one more child or a path goes deeper."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from .children import coverage_option, distinct_option
from .noise import Stream
from .options import OptionError, option
from .select import choose, value
from .tree import Node, SearchTree
from .walks import Walk, Walks, unvisit


@dataclass(slots=True)
class Arm:
    """Values seen under one choice."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def see(self, worth: float) -> None:
        self.count += 1
        self.total += worth
        self.squares += worth * worth


class Arms:
    """The choices at one node, as AB-MCTS-A aggregates values: GEN, CONT, and the node itself among its siblings."""

    __slots__ = ("deeper", "new", "own", "stream")

    def __init__(self, stream: Stream) -> None:
        self.new = Arm()
        """GEN: values of the node's children when they came."""
        self.deeper = Arm()
        """CONT: values of what came below its children."""
        self.own = Arm()
        """The node's value when it came and those of all that came below it."""
        self.stream = stream


@dataclass
class ABMCTS(Walks):
    """AB-MCTS-A. A walk goes down from the root; at each node it draws one number from the posterior of GEN (a new
    child) and one of CONT (go deeper) and takes the larger. After CONT it draws one for each open child and follows
    the largest. A node without open children gets a new one.

    Every new step's value v is seen by GEN of its parent, by the step itself, by each ancestor below the root, and by
    CONT of each node above the parent. The posterior of a choice that has seen v_1 … v_n is, by `posterior`,

        beta:      Beta(prior_a + sum v_i, prior_b + sum (1 - v_i))
        gaussian:  of the mean, under a normal-inverse-chi-squared prior with m, k = 1, nu = 1, tau2: draw
                   s2 = nu' · tau2' / chi2(nu'), then Normal(m', s2 / k'), where k' = 1 + n, nu' = 1 + n,
                   m' = (m + sum v_i) / k', nu' · tau2' = tau2 + sum (v_i - mean)^2 + n · (mean - m)^2 / k'.

    In the source a node is a whole answer and deeper means refining it; here it is a step and deeper means going on
    with it. So a walk, by default, goes on from its new step until a path ends (`rollout`); without it every new step
    ends its walk. A sample that equals a known step shows nothing new and is not seen; the walk goes on from there.
    Nodes are exhausted and closed as in `mcts`. The draws depend on `seed` and the node alone, and the `leaf_batch`
    walks at once spread by their draws. The answer is the finished path of highest value, then of most visits.

    Sources: Inoue et al. 2025, arXiv 2503.04412 (AB-MCTS-A); Murphy 2023, Probabilistic Machine Learning: Advanced
    Topics, section 3.4.3.3 (the normal posterior).
    """

    name: ClassVar[str] = "ab-mcts"

    posterior: str = option("gaussian", "what is drawn from", choices=("gaussian", "beta"))
    prior_a: float | None = option(None, "values of 1 seen beforehand; default 0.5, only beta", minimum=0.01)
    prior_b: float | None = option(None, "values of 0 seen beforehand; default 0.5, only beta", minimum=0.01)
    prior_mean: float | None = option(None, "m of the prior; default 0, only gaussian", minimum=0, maximum=1)
    prior_variance: float | None = option(None, "tau2 of the prior; default 0.1, only gaussian", minimum=1e-6)
    rollout: bool = option(True, "walk on from a new step until a path ends")
    leaf_batch: int = option(8, "walks at once", minimum=1, maximum=4096)
    distinct: bool = distinct_option()
    coverage: float | None = coverage_option()
    max_duplicates: int = option(4, "samples in a row without anything new that exhaust a node", minimum=1)
    simulations: int | None = option(None, "stop after so many walks; default only the budget", minimum=1)
    accept: float | None = option(
        None, "stop at a finished path of this value or more; default never", minimum=0, maximum=1
    )
    seed: int | None = option(None, "of the draws; default that of the run, else 0")

    def __post_init__(self) -> None:
        of = {"beta": ("prior_a", "prior_b"), "gaussian": ("prior_mean", "prior_variance")}
        for kind, names in of.items():
            for name in names:
                if kind != self.posterior and getattr(self, name) is not None:
                    raise OptionError(f"{name} means nothing with posterior {self.posterior}", option=name)
        super().__init__()
        self._a = 0.5 if self.prior_a is None else self.prior_a
        self._b = 0.5 if self.prior_b is None else self.prior_b
        self._mean = 0.0 if self.prior_mean is None else self.prior_mean
        self._variance = 0.1 if self.prior_variance is None else self.prior_variance
        self._arms: dict[Node, Arms] = {}
        self._walked = 0
        self._accepted = False

    def done(self, tree: SearchTree) -> str | None:
        if self._accepted:
            return "accepted"
        return "simulations" if self.simulations is not None and self._walked >= self.simulations else None

    def best(self, tree: SearchTree) -> Node | None:
        return choose(tree)

    def _begin(self, tree: SearchTree) -> Node | None:
        if self.simulations is not None and self._walked + len(self._running) >= self.simulations:
            return None
        return tree.root if tree.root.state == "open" else None

    def _widens(self, node: Node) -> bool:
        if not node.live:
            return True
        arms = self._at(node)
        return self._draw(arms.new, arms.stream) > self._draw(arms.deeper, arms.stream)

    def _select(self, node: Node) -> Node | None:
        stream = self._at(node).stream
        return max(node.live, key=lambda child: self._draw(self._at(child).own, stream), default=None)

    def _arrive(self, tree: SearchTree, walk: Walk, node: Node) -> None:
        if node.reward is not None:
            self._see(tree, node, value(node))
        if self.rollout:
            node.virtual += 1
            walk.node = node
            self._descend(tree, walk)
        else:
            self._walked += 1
            unvisit(walk.node)

    def _finish(self, tree: SearchTree, node: Node) -> None:
        worth = value(node)
        self._see(tree, node, worth)
        self._walked += 1
        self._accepted = self.accept is not None and worth >= self.accept

    def _see(self, tree: SearchTree, node: Node, worth: float) -> None:
        tree.backup(node, worth)
        assert node.parent is not None, "the root is never new"
        self._at(node).own.see(worth)
        self._at(node.parent).new.see(worth)
        at = node.parent
        while at.parent is not None:
            self._at(at).own.see(worth)
            self._at(at.parent).deeper.see(worth)
            at = at.parent

    def _at(self, node: Node) -> Arms:
        arms = self._arms.get(node)
        if arms is None:
            arms = self._arms[node] = Arms(Stream(self.seed or 0, node.id))
        return arms

    def _draw(self, arm: Arm, stream: Stream) -> float:
        """One number from the posterior of what the choice is worth."""
        n, total = arm.count, arm.total
        if self.posterior == "beta":
            return stream.beta(self._a + total, self._b + n - total)
        k = nu = 1 + n
        scatter = self._variance
        if n:
            mean = total / n
            scatter += max(arm.squares - total * mean, 0.0) + n * (mean - self._mean) ** 2 / k
        # chi2(nu) is 2 · Gamma(nu / 2)
        variance = scatter / 2 * math.exp(-stream.log_gamma(nu / 2))
        return (self._mean + total) / k + math.sqrt(variance / k) * stream.normal()
