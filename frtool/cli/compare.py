"""`frtool compare`: two recorded searches beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from frtool.errors import UsageError

from .show import print_text, warn

if TYPE_CHECKING:
    from frtool.export.recorded import RecordedSearch
    from frtool.replay.difference import Comparison


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A trace, or a folder of `frtool eval`.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another of the same kind.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Compare two recorded searches: answers, cost, memory, and the first step in which their trees differ.

    Or two evaluations, problem by problem.
    """
    from frtool.export.recorded import read_search
    from frtool.replay.difference import compare_trees
    from frtool.replay.evaluations import results_file
    from frtool.view.safe import safe_json

    results = [results_file(path) for path in (a, b)]
    if results[0] is not None and results[1] is not None:
        return _compare_evaluations(results[0], results[1], json)
    if results[0] is not None or results[1] is not None:
        raise UsageError(f"{a if results[0] else b} is an evaluation, {b if results[0] else a} is none")
    one, other = read_search(a), read_search(b)
    comparison = compare_trees(one.events, other.events)
    if json:
        print_text(safe_json(_record(one, other, comparison), indent=2) + "\n")
        return 0
    for search in (one, other):
        if search.note:
            warn(f"{search.path}: {search.note}")
    print_text(_report(one, other, comparison))
    return 0


def tree_verdict(comparison: Comparison, a: str = "A", b: str = "B") -> str:
    """One or two lines: whether the trees are the same, else the first difference, with its values."""
    from frtool.replay.difference import THE_END
    from frtool.view.safe import safe_line

    difference = comparison.difference
    if difference is None:
        exact = "to the last bit" if comparison.deviation == 0 else f"figures within {comparison.deviation:.1g}"
        return f"the trees are the same: {_steps(comparison.same)}, {exact}"
    here, there = (safe_line(str(v), 200) for v in (difference.a, difference.b))
    shared = f"the same in both trees: {_steps(comparison.same)}"
    if difference.field is None:
        only, text = (a, here) if difference.b is None else (b, there)
        return f"{shared}; the first that differs is {difference.node}, in {only} alone: {text}"
    if difference.node == THE_END:
        return f"{shared}, but not the {difference.field} at the end:\n  {a}: {here}\n  {b}: {there}"
    which = f"the first that differs is {difference.node}, in its {difference.field}"
    return f"{shared}; {which}:\n  {a}: {here}\n  {b}: {there}"


def _steps(n: int) -> str:
    return f"{n:,} step{'s' * (n != 1)}"


def config_differences(a: RecordedSearch, b: RecordedSearch) -> dict[str, list[Any]]:
    """The settings that differ, with both values; options of the algorithm as `algorithm_options.name`."""
    one, other = _settings(a), _settings(b)
    keys = dict.fromkeys([*one, *other])
    return {key: [one.get(key), other.get(key)] for key in keys if one.get(key) != other.get(key)}


def _settings(search: RecordedSearch) -> dict[str, Any]:
    settings = search.run.config | {"prompt": search.run.prompt}
    options = settings.pop("algorithm_options", None) or {}
    return settings | {f"algorithm_options.{name}": value for name, value in options.items()}


def _compare_evaluations(a: Path, b: Path, json: bool) -> int:
    from dataclasses import asdict

    from frtool.replay.evaluations import pair, read_results
    from frtool.view.safe import safe_json

    from .table import table

    cells = list(pair(read_results(a), read_results(b)))
    if json:
        record = {"a": str(a), "b": str(b), "cells": [asdict(cell) for cell in cells]}
        print_text(safe_json(record, indent=2) + "\n")
        return 0
    rows: list[tuple[str, ...]] = [("task", "algorithm", "budget", "pairs", "A", "B", "A alone", "B alone", "p")]
    for cell in cells:
        right = [_percent(cell.accuracy_a), _percent(cell.accuracy_b)]
        alone = [f"{cell.only_a:,}", f"{cell.only_b:,}"] if cell.paired else ["-", "-"]
        p = "-" if cell.p_value is None else f"{cell.p_value:.2g}"
        rows.append((cell.task, cell.algorithm, _plain(cell.budget), f"{cell.paired:,}", *right, *alone, p))
    print_text(table(rows) + "p: exact sign test that both are right equally often\n")
    return 0


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _report(a: RecordedSearch, b: RecordedSearch, comparison: Comparison) -> str:
    from .table import table

    rows = [("", "A", "B")]
    for (name, one), other in zip(_figures(a).items(), _figures(b).values(), strict=True):
        label = name.removesuffix("_bytes").replace("_", " ").replace("kv", "KV")
        rows.append((label, _words(name, one), _words(name, other)))
    settings = [("setting", "A", "B")]
    settings += [(key, _plain(x), _plain(y)) for key, (x, y) in config_differences(a, b).items()]
    text = table(rows, 40)
    if len(settings) > 1:
        text += "\n" + table(settings, 40)
    return f"{text}\n{tree_verdict(comparison)}\n"


def _record(a: RecordedSearch, b: RecordedSearch, comparison: Comparison) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "a": {"trace": str(a.path), "complete": a.complete} | _figures(a),
        "b": {"trace": str(b.path), "complete": b.complete} | _figures(b),
        "settings": config_differences(a, b),
        "same": comparison.difference is None,
        "same_steps": comparison.same,
        "largest_deviation": comparison.deviation,
        "first_difference": None if comparison.difference is None else asdict(comparison.difference),
    }


def _figures(search: RecordedSearch) -> dict[str, Any]:
    run, ended, model = search.run, search.ended, search.model
    return {
        "algorithm": run.config.get("algorithm"),
        "model": run.model.get("name") or run.config.get("model"),
        "device": run.model.get("device"),
        "dtype": run.model.get("dtype"),
        "answer": ended.answer,
        "verified": ended.verified,
        "score": ended.reward,
        "votes": ended.votes,
        "reason": ended.reason,
        "seconds": ended.seconds,
        "tokens_sampled": ended.policy_tokens,
        "tokens_scored": ended.scorer_tokens,
        "steps": model.steps,
        "nodes": ended.nodes,
        "finished_paths": ended.terminals,
        "depth": max(node.depth for node in model.nodes.values()),
        "kv_peak_bytes": ended.kv_peak_bytes,
        "kv_unshared_peak_bytes": ended.kv_unshared_peak_bytes,
    }


def _words(name: str, value: Any) -> str:
    from frtool.view.glyphs import bytes_text
    from frtool.view.report import reason_text

    if name.endswith("_bytes") and isinstance(value, int):
        return bytes_text(value)
    if name == "seconds":
        return f"{value:.1f}"
    return reason_text(value) if name == "reason" else _plain(value)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
