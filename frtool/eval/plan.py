"""What an evaluation runs: its settings, checked before a model loads, and its cells."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from frtool.config import VERDICTS, SearchConfig
from frtool.errors import UsageError
from frtool.search.options import OptionError
from frtool.search.registry import ALGORITHMS, resolve_options

from .control import RANDOM_POLICY
from .items import Item

GREEDY = "greedy"
BASELINE = "best-of-n"
"""What the others are compared with at equal tokens."""
CHAINS = (BASELINE, "self-consistency")
BEAM = "beam"
# Children of a beam, which are distinct as they are sampled: none has to be replaced.
BEAM_EXPAND = 4
BEAM_OVERSAMPLE = 1.0
LEVELS = ("beam", "dvts")


@dataclass(frozen=True, slots=True)
class Plan:
    """Settings of one evaluation. `search` holds what all searches share; its prompt, seed and algorithm do not count.

    Raises UsageError for settings that cannot work.
    """

    tasks: tuple[str, ...]
    algorithms: tuple[str, ...]
    budgets: tuple[int, ...]
    """Steps that a search may sample."""
    search: SearchConfig
    seeds: tuple[int, ...] = (0,)
    offset: int = 0
    limit: int | None = None
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of the algorithms, by name."""
    baseline_budgets: tuple[int, ...] = ()
    """More budgets, of best-of-n alone."""
    path_steps: int = 8
    """Steps that a path is taken to have where the problem does not say: best-of-n samples budget / path_steps."""

    def __post_init__(self) -> None:
        for name in ("tasks", "algorithms", "budgets", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise UsageError(f"--{name} is empty" if not values else f"--{name} names something twice")
        if (
            min(self.budgets) < 1
            or self.offset < 0
            or self.path_steps < 1
            or (self.limit is not None and self.limit < 1)
        ):
            raise UsageError("budgets, --limit and --path-steps must be at least 1, and --offset at least 0")
        if self.baseline_budgets and (min(self.baseline_budgets) < 1 or BASELINE not in self.algorithms):
            raise UsageError(f"--baseline-budgets must be at least 1, and needs {BASELINE} among --algorithms")
        if self.search.scorer in VERDICTS:
            raise UsageError(
                f"--scorer {self.search.scorer} would show the search the right answer",
                hint="choose from auto, reward, logprob, self-eval, prm",
            )
        strangers = set(self.options) - set(self.algorithms)
        if strangers:
            raise UsageError(f"an option is for {min(strangers)}, which is not among --algorithms")
        for name in self.algorithms:
            if name == RANDOM_POLICY:
                continue
            try:
                resolve_options(name, self.options.get(name, {}))
            except OptionError as error:
                raise UsageError(str(error), hint=f"the algorithms are {', '.join(ALGORITHMS)}") from None

    def cells(self) -> list[Cell]:
        """Every task with every algorithm and budget. Greedy search does not depend on a budget and is run once."""
        return [
            Cell(task, algorithm, budget)
            for task in self.tasks
            for algorithm in self.algorithms
            for budget in self._budgets(algorithm)
        ]

    def _budgets(self, algorithm: str) -> list[int | None]:
        if algorithm == GREEDY:
            return [None]
        more = self.baseline_budgets if algorithm == BASELINE else ()
        return [*sorted({*self.budgets, *more})]

    def seeds_of(self, cell: Cell) -> tuple[int, ...]:
        return self.seeds[:1] if cell.algorithm == GREEDY else self.seeds

    def fitted(self, cell: Cell, item: Item) -> dict[str, Any]:
        """The options of the cell's algorithm: as many chains, or as wide levels, as the budget pays for, unless the
        user gave its size."""
        options = dict(self.options.get(cell.algorithm, {}))
        if cell.budget is None:
            return options
        level = max(cell.budget // self.length(item), 1)
        if cell.algorithm in CHAINS:
            options.setdefault("n", level)
        elif cell.algorithm in LEVELS and not options.keys() & {"width", "keep", "expand", "oversample"}:
            keep = max(math.floor(level / (BEAM_EXPAND * BEAM_OVERSAMPLE)), 1)
            options |= {"width": BEAM_EXPAND * keep, "oversample": BEAM_OVERSAMPLE}
            if cell.algorithm == BEAM:
                options["keep"] = keep
        return options

    def length(self, item: Item) -> int:
        """Steps of a path."""
        return self.path_steps if item.puzzle is None else len(item.puzzle.numbers) - 1

    def record(self) -> dict[str, Any]:
        """Everything that decides the results, as JSON values."""
        search = self.search.record()
        for name in (
            "prompt",
            "algorithm",
            "algorithm_options",
            "seed",
            "steps",
            "batch",
            "kv_memory",
            "block_size",
            "swap_space",
        ):
            search.pop(name, None)
        return {"search": search, "options": self.options, "path_steps": self.path_steps}


@dataclass(frozen=True, slots=True)
class Cell:
    """One line of the report."""

    task: str
    algorithm: str
    budget: int | None
