"""Greedy decoding: the baseline that every search is measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .chains import Chains
from .select import choose
from .tree import Node, SearchTree


@dataclass
class Greedy(Chains):
    """One chain at temperature 0."""

    name: ClassVar[str] = "greedy"
    greedy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__init__(1)

    def best(self, tree: SearchTree) -> Node | None:
        return choose(tree)
