"""Beam search over steps, with distinct children."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .children import coverage_option, distinct_option, seed_option
from .closing import prune
from .families import Family
from .levels import Levels
from .lookahead import Lookahead
from .options import OptionError, option
from .protocols import Expand
from .select import AGGREGATES, choose, rank
from .tree import Node, SearchTree


@dataclass
class Beam(Levels):
    """Level-synchronous beam search over steps.

    Level l: sample `width` distinct children of the root, later `expand` of each beam: without replacement (`Lines`),
    or with `distinct` false independently. A sample that equals a sibling all the same, or leads to a state that the
    tree has already, is a duplicate; samples are replaced until enough are distinct or `oversample` times as many were
    tried. Then the `keep` paths of highest value among the level's children and all finished paths stay; the unfinished
    of these are the next beams. It ends when no unfinished path is among them.
    The answer is the finished path of highest value.

    With `lookahead` k each unfinished child is rolled out by its k likeliest steps (temperature 0), or to the end of
    its path, before the level is cut, and has the value of the path to there. These steps count against the budget like
    any other; they stay in the tree, so that a beam's first child is that of its rollout, and a path that a rollout
    finished can be the answer; it competes with the other paths from its own level on.

    Source: Snell et al. 2024, arXiv 2408.03314 (beam search against a process reward model, `width` = N samples and
    `keep` = N / M; lookahead search, which rolls out at temperature 0), with sampling without replacement in place of
    independent samples (sources in `Lines`).
    """

    name: ClassVar[str] = "beam"

    width: int = option(16, "children of a level, over all beams", minimum=1)
    keep: int = option(4, "paths that stay after a level", minimum=1)
    expand: int | None = option(None, "distinct children of each beam; default width / keep", minimum=1)
    oversample: float = option(2.0, "samples tried at most, as a multiple of the children wanted", minimum=1)
    lookahead: int = option(0, "greedy steps that a child is rolled out by before it is valued", minimum=0)
    distinct: bool = distinct_option()
    coverage: float | None = coverage_option()
    seed: int | None = seed_option()
    aggregate: str = option("last", "value of a path from its steps' rewards", choices=AGGREGATES)

    def __post_init__(self) -> None:
        if self.keep > self.width:
            raise OptionError(f"keep {self.keep} is more than the {self.width} children of a level", option="keep")
        if self.expand is not None and self.expand * self.keep > self.width:
            raise OptionError(
                f"{self.keep} beams of {self.expand} children are more than width {self.width}", option="expand"
            )
        super().__init__()
        self._rollouts = Lookahead(self.lookahead)
        self._children: list[Node] = []

    def ask(self, tree: SearchTree, room: int) -> list[Expand]:
        return super().ask(tree, room) or self._rollouts.take(room)

    def tell(self, tree: SearchTree, expand: Expand, node: Node) -> list[Node]:
        leaving: list[Node] = []
        if self._rollouts:
            self._back_up(tree, expand, node)
            self._rollouts.tell(tree, node)
        else:
            family = self._tell(tree, expand, node)
            if family is None:
                return []
            self._complete(tree, family, leaving)
            if not self._families:
                self._look_ahead(tree)
        while not (self._families or self._rollouts) and self._children:
            self._cut(tree, leaving)
        return leaving

    def done(self, tree: SearchTree) -> str | None:
        return None if self._rollouts else super().done(tree)

    def best(self, tree: SearchTree) -> Node | None:
        return choose(tree, worth=self._worth)

    def _complete(self, tree: SearchTree, family: Family, leaving: list[Node]) -> None:
        self._children += family.children
        if family.node is not tree.root:
            leaving.append(tree.leave(family.node, "expanded"))

    def _look_ahead(self, tree: SearchTree) -> None:
        """Roll the level out, once all of its children are there."""
        if self.lookahead:
            for child in self._children:
                if child.terminal is None:
                    self._rollouts.begin(tree, child)

    def _cut(self, tree: SearchTree, leaving: list[Node]) -> None:
        """Keep the best paths and begin the next level with them; `leaving` gets the nodes that fall out."""
        level = self._children[0].depth
        unfinished = [node for node in self._children if node.terminal is None]
        finished = [node for node in tree.terminals if node.depth <= level]
        best = sorted(unfinished + finished, key=lambda node: rank(node, self._promise))[: self.keep]
        beams = [node for node in best if node.terminal is None]
        stay = set(beams)
        for node in unfinished:
            if node not in stay:
                leaving += prune(tree, node, "beam")
        self._children = []
        for beam in beams:
            family = self._families.want(tree, beam, self.expand or self.width // self.keep)
            if family is not None:
                self._complete(tree, family, leaving)
        if not self._families:
            self._look_ahead(tree)

    def _promise(self, node: Node) -> float:
        return self._worth(self._rollouts.end(node))
