"""Monte Carlo tree search over steps: PUCT or UCT, rollouts in the tree, progressive widening."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from .children import coverage_option, distinct_option, seed_option
from .options import OptionError, option
from .select import choose, value
from .tree import Node, SearchTree
from .walks import Walk, Walks

BACKUPS = ("mean", "max", "product", "terminal")


@dataclass
class MCTS(Walks):
    """Each simulation walks from the root and always ends in a finished path.

    At a node with n visits, this one included, it samples new children while fewer than ceil(widen · n^widen_power) of
    them are open (progressive widening). Then it follows the open child of largest

        (Q - Qmin) / (Qmax - Qmin) + U,

    where Qmin and Qmax are the least and largest value seen in the tree, N the child's visits, P its prior (exp of its
    mean log-probability a token, normalised over siblings), and `select` says

        puct:  U = c_puct · P · sqrt(n) / (1 + N)
        uct:   U = c_uct · sqrt(ln n / N), so that a child without visits comes first, the one of largest Q before.

    The value of a child from its reward r, the scorer's value of the step, and the values v of the N finished paths
    below it, by `backup`:

        mean:      Q = (trust · r + sum v) / (trust + N), so that r counts as `trust` visits
        max:       Q = max(r, max v), without r where trust is 0
        product:   as mean, where the product of the rewards from the root on stands for r and for each v
        terminal:  Q = sum v / N; rewards of unfinished steps do not count.

    A child without either has its reward as Q, or its parent's mean where nothing gave a reward.
    New nodes are treated alike (rollout in the tree, not outside of it), until a path ends: its value is backed up. A
    simulation under way counts as `virtual_loss` visits of value Qmin on its path, so that the `leaf_batch` simulations
    that run at once spread.

    New children are lines that the node has not got yet (`Lines`), or with `distinct` false independent samples. A node
    is exhausted when `max_duplicates` samples in a row gave nothing new, or when its lines hold `coverage` of the
    model's probability (0.99, of its children, where they are independent). A finished node is closed, and so is an
    exhausted node whose children are all closed; closed nodes are not visited again. The answer is the finished path of
    highest value, then of most visits.

    Sources: Silver et al. 2017 (PUCT); Kocsis and Szepesvári 2006 (UCT, with c_uct = 2 · Cp / sqrt 2); Coulom 2007 and
    Couëtoux et al. 2011 (widening, and max backup in the first); Schrittwieser et al. 2020, arXiv 1911.08265
    (normalised Q); Chaslot et al. 2008 (virtual loss); Lightman et al. 2023, arXiv 2305.20050 (product of step
    rewards); Qi et al. 2024, arXiv 2408.06195 (rStar: the end of the path alone counts).
    """

    name: ClassVar[str] = "mcts"

    select: str = option("puct", "how a simulation weighs value against exploration", choices=("puct", "uct"))
    c_puct: float | None = option(None, "weight of the prior against the value; default 0.5, only puct", minimum=0)
    c_uct: float | None = option(None, "weight of exploration against the value; default 0.5, only uct", minimum=0)
    widen: float = option(2.0, "open children of a node at its first visit", minimum=1)
    widen_power: float = option(0.5, "growth of the open children with visits", minimum=0, maximum=1)
    leaf_batch: int = option(8, "simulations at once", minimum=1, maximum=4096)
    virtual_loss: float = option(1.0, "visits of the least value that a running simulation counts for", minimum=0)
    trust: float | None = option(
        None, "visits that the scorer's value of a step counts for; default 8, not with backup terminal", minimum=0
    )
    backup: str = option("mean", "value of a node from those below it", choices=BACKUPS)
    distinct: bool = distinct_option()
    coverage: float | None = coverage_option()
    seed: int | None = seed_option()
    max_duplicates: int = option(4, "samples in a row without anything new that exhaust a node", minimum=1)
    simulations: int | None = option(None, "stop after so many finished paths; default only the budget", minimum=1)
    accept: float | None = option(
        None, "stop at a finished path of this value or more; default never", minimum=0, maximum=1
    )

    def __post_init__(self) -> None:
        for given, name, other in ((self.c_puct, "c_puct", "uct"), (self.c_uct, "c_uct", "puct")):
            if given is not None and self.select == other:
                raise OptionError(f"{name} means nothing with select {other}", option=name)
        if self.trust is not None and self.backup == "terminal":
            raise OptionError(
                "trust means nothing with backup terminal, which ignores the steps' values", option="trust"
            )
        super().__init__()
        explore = self.c_uct if self.select == "uct" else self.c_puct
        self._explore = 0.5 if explore is None else explore
        self._trust = 0.0 if self.backup == "terminal" else 8.0 if self.trust is None else self.trust
        self._products: dict[Node, float] = {}
        """Product of the rewards from the root to each node, where backup is 'product'."""
        self._backups = 0
        self._accepted = False
        self._least = math.inf
        self._most = -math.inf

    def done(self, tree: SearchTree) -> str | None:
        if self._accepted:
            return "accepted"
        return "simulations" if self.simulations is not None and self._backups >= self.simulations else None

    def best(self, tree: SearchTree) -> Node | None:
        return choose(tree, worth=self._worth)

    def _begin(self, tree: SearchTree) -> Node | None:
        if self.simulations is not None and self._backups + len(self._running) >= self.simulations:
            return None
        return tree.root if tree.root.state == "open" else None

    def _arrive(self, tree: SearchTree, walk: Walk, node: Node) -> None:
        if self.backup == "product" and node.reward is not None:
            self._products[node] = self._worth(node)
        if self.backup != "terminal":
            self._see(self._worth(node))
        self._descend(tree, walk)

    def _finish(self, tree: SearchTree, node: Node) -> None:
        worth = self._worth(node)
        self._see(worth)
        tree.backup(node, worth)
        self._backups += 1
        self._accepted = self.accept is not None and worth >= self.accept

    def _widens(self, node: Node) -> bool:
        allowed = math.ceil(self.widen * math.pow(node.visits + node.virtual, self.widen_power))
        return len(node.live) + node.pending < allowed

    def _select(self, node: Node) -> Node | None:
        """The live child of largest value with exploration; the first of equals. None without live children."""
        spread = self._most - self._least
        scale = 1 / spread if spread > 0 else 0.0
        least, loss, trust = self._least, self.virtual_loss, self._trust
        entries = node.visits + node.virtual
        uct, take_peak, products = self.select == "uct", self.backup == "max", self._products
        if uct:
            explore = self._explore * math.sqrt(math.log(entries))
        else:
            explore = self._explore * math.sqrt(entries) / node.weights if node.weights else 0.0
        known = 0.0 if math.isinf(least) else least
        unknown = node.total / node.visits if node.visits else known
        untold = self.backup == "terminal"
        best, highest = None, (0, -math.inf)
        for child in node.live:
            reward = None if untold else products.get(child) if products else child.reward
            visits, running = child.visits, child.virtual
            believed = 0.0 if reward is None else trust
            if take_peak:
                total = (believed + visits) * max(reward if reward is not None and trust else 0.0, child.peak)
            else:
                total = (believed * reward if reward is not None else 0.0) + child.total
            weight = believed + visits
            if running:
                lost = loss * running
                weight += lost
                total += lost * known
            q = total / weight if weight else unknown if reward is None else reward
            q = (q - least) * scale if scale else 0.0
            tries = visits + running
            if not uct:
                score = 0, q + explore * (child.weight / (1 + tries))
            elif tries:
                score = 0, q + explore * (1 / math.sqrt(tries))
            else:  # each is tried once before any is tried again
                score = 1, q
            if score > highest:
                best, highest = child, score
        return best

    def _worth(self, node: Node) -> float:
        return value(node, "product" if self.backup == "product" else "last")

    def _see(self, worth: float) -> None:
        self._least = min(self._least, worth)
        self._most = max(self._most, worth)
