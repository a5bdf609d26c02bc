"""All algorithms by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .ab_mcts import ABMCTS
from .beam import Beam
from .best_first import BestFirst
from .best_of_n import BestOfN
from .dvts import DVTS
from .greedy import Greedy
from .gumbel import Gumbel
from .mcts import MCTS
from .options import Option, OptionError, options_of, resolve
from .protocols import Algorithm
from .rebase import Rebase
from .self_consistency import SelfConsistency

__all__ = ["ALGORITHMS", "CLASSES", "Option", "OptionError", "make_algorithm", "resolve_options"]

CLASSES: dict[str, type[Any]] = {
    cls.name: cls for cls in (Greedy, BestOfN, SelfConsistency, Beam, DVTS, Rebase, BestFirst, MCTS, ABMCTS, Gumbel)
}
ALGORITHMS: dict[str, dict[str, Option]] = {name: options_of(cls) for name, cls in CLASSES.items()}
"""The options of each algorithm, by name."""


def resolve_options(name: str, options: Mapping[str, Any], *, seed: int | None = None) -> dict[str, Any]:
    """Every option of the algorithm, with the given ones in place. Raises OptionError.

    `seed` is the run's: an algorithm that draws, and so has an option of this name, takes it unless one is given.
    """
    resolved = resolve(_class(name), name, options)
    if "seed" in resolved and resolved["seed"] is None:
        resolved["seed"] = seed
    return resolved


def make_algorithm(name: str, options: Mapping[str, Any] | None = None) -> Algorithm:
    """A fresh algorithm. Option names may be written with `-` or `_`, values as text; None means the default.

    Raises OptionError, naming the option, for an unknown algorithm, an option that it does not use and a bad value.
    """
    algorithm: Algorithm = _class(name)(**resolve_options(name, options or {}))
    return algorithm


def _class(name: str) -> type[Any]:
    if name not in CLASSES:
        raise OptionError(f"unknown algorithm {name!r}; there are {', '.join(CLASSES)}", option="algorithm")
    return CLASSES[name]
