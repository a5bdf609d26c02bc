"""Two evaluations held against each other, problem by problem."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frtool.errors import FrtoolError

RESULTS = "results.jsonl"
_FIELDS: dict[str, tuple[type, ...]] = {
    "task": (str,), "algorithm": (str,), "budget": (int, type(None)), "id": (str,), "seed": (int,), "correct": (bool,),
}  # fmt: skip

Key = tuple[str, str, int | None, str, int]
"""Task, algorithm, budget, problem, seed."""


@dataclass(frozen=True, slots=True)
class PairedCell:
    """One task with one algorithm and budget. Shares and counts are of the `paired` problems that both evaluations
    have; where there are none, each side's own (None for a side without the cell)."""

    task: str
    algorithm: str
    budget: int | None
    paired: int
    accuracy_a: float | None
    accuracy_b: float | None
    only_a: int
    """Problems that A alone has right."""
    only_b: int
    p_value: float | None
    """Of the exact two-sided sign test (McNemar) that the two are equally often right; None without pairs."""


def results_file(path: Path) -> Path | None:
    """The results behind `path`, a folder of `frtool eval` or its file; None where it is something else."""
    if path.is_dir():
        return path / RESULTS if (path / RESULTS).is_file() else None
    try:
        with path.open("rb") as file:
            record = json.loads(file.readline(1 << 20))
    except (OSError, ValueError, RecursionError):
        return None
    return path if isinstance(record, dict) and "kind" not in record and set(_FIELDS) <= set(record) else None


def read_results(file: Path) -> dict[Key, dict[str, Any]]:
    """All results by key; a last line that was cut is left out. Raises FrtoolError naming the line of another fault."""
    results: dict[Key, dict[str, Any]] = {}
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise FrtoolError(f"cannot read {file}: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            wrong = [n for n, types in _FIELDS.items() if type(record.get(n)) not in types]
        except (ValueError, AttributeError, RecursionError):
            if number == len(lines):
                break
            raise FrtoolError(f"{file}, line {number}: no result of an evaluation") from None
        if wrong:
            raise FrtoolError(f"{file}, line {number}: `{wrong[0]}` is missing or of another type")
        results[record["task"], record["algorithm"], record["budget"], record["id"], record["seed"]] = record
    if not results:
        raise FrtoolError(f"{file} holds no results")
    return results


def pair(a: dict[Key, dict[str, Any]], b: dict[Key, dict[str, Any]]) -> Iterator[PairedCell]:
    """One comparison a cell, in the order in which the cells first come."""
    for cell in dict.fromkeys(key[:3] for key in [*a, *b]):
        mine = {key: bool(r["correct"]) for key, r in a.items() if key[:3] == cell}
        theirs = {key: bool(r["correct"]) for key, r in b.items() if key[:3] == cell}
        both = mine.keys() & theirs.keys()
        only_a = sum(mine[key] and not theirs[key] for key in both)
        only_b = sum(theirs[key] and not mine[key] for key in both)
        yield PairedCell(
            *cell,
            len(both),
            _share([mine[key] for key in both or mine]),
            _share([theirs[key] for key in both or theirs]),
            only_a,
            only_b,
            sign_test(only_a, only_b) if both else None,
        )


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p-value of the exact binomial test with share 1/2: how likely so uneven a split is by chance alone.

    Source: Q. McNemar 1947, Psychometrika 12, 153-157, in its exact form.
    """
    n = wins + losses
    tail = sum(math.comb(n, k) for k in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / (1 << n))


def _share(right: list[bool]) -> float | None:
    return sum(right) / len(right) if right else None
