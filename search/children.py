"""How an algorithm samples the children of a node: distinct ones, or independent ones."""

from __future__ import annotations

from typing import Any

from .lines import Lines
from .options import OptionError, option
from .protocols import Expand
from .tree import Node, SearchTree

FREE = 0.4
COVERAGE = 0.9999


def distinct_option() -> Any:
    return option(True, "sample the lines that a node has not got yet; else independently of those")


def coverage_option() -> Any:
    return option(
        None,
        f"probability of the lines seen at which a node is exhausted; default {COVERAGE}, only distinct",
        minimum=0,
        maximum=1,
    )


def seed_option() -> Any:
    return option(None, "of the choice among those; default that of the run, else 0")


class Children:
    """Requests for children. Where they are to be `distinct`, each is a sample of the lines that the algorithm has not
    been told of after that node (`Lines`); otherwise, and where the generator gives no intervals, of all lines.

    Raises OptionError for a `coverage` of samples that are not distinct.

    Samples under way leave less and less to choose from: the next one waits for one of them when less than the share
    `free` of the unseen probability lies elsewhere. With 1 it waits for all.

    What a request excludes depends on the order of telling alone, so neither on the generator's capacity nor its pace.
    """

    def __init__(self, *, distinct: bool, coverage: float | None, seed: int | None, free: float = FREE) -> None:
        if coverage is not None and not distinct:
            raise OptionError("coverage means nothing where distinct is false", option="coverage")
        self.distinct = distinct
        self._coverage = COVERAGE if coverage is None else coverage
        self._seed = seed or 0
        self._free = free

    def want(self, tree: SearchTree, node: Node) -> Expand:
        if not self.distinct:
            return tree.want(node)
        return tree.want(node, lines=node.lines or Lines(self._seed, node.id, self._coverage))

    def ready(self, tree: SearchTree, node: Node) -> bool:
        """Whether to ask for one more now."""
        lines = node.lines
        if lines is None or not node.pending or tree.blind or (lines.told and not lines.seen):
            return True
        return lines.free >= self._free * lines.rest and lines.free > 0
