"""Runs an evaluation for the command line: progress on stderr, the table or one JSON object on stdout."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frtool.bench.machine import machine
from frtool.errors import FrtoolError
from frtool.eval.matched import Matched, match_tokens
from frtool.eval.plan import Plan
from frtool.eval.record import Result, ResultFile
from frtool.eval.summary import Summary, summarise
from frtool.files import save_text
from frtool.view.safe import safe_json

from .stop import Stopper

if TYPE_CHECKING:
    from frtool.models.load import LoadedModel
    from frtool.solving.equipment import Equipment


@dataclass(frozen=True, slots=True)
class Output:
    """Where the results go."""

    folder: Path | None
    resume: bool
    plot: bool
    json: bool
    quiet: bool
    terminal_plot: bool = False


def evaluate(plan: Plan, output: Output) -> int:
    """Run what is not done yet and report on all of it. The exit status: 130 when it was interrupted."""
    from frtool.eval.commands import judged_by_command
    from frtool.eval.report import check_plot, plot
    from frtool.eval.tasks import load_items

    stdout = sys.stdout
    drawing = output.folder is not None and output.plot
    if drawing:
        check_plot()
    if output.terminal_plot:
        from frtool.view.chart import check_chart

        check_chart()
    with contextlib.redirect_stdout(sys.stderr):
        items = {task: load_items(task, offset=plan.offset, limit=plan.limit) for task in plan.tasks}
        command = plan.search.verify_command
        if command is not None:
            seconds = plan.search.verify_seconds
            items = {task: judged_by_command(found, command, seconds) for task, found in items.items()}
        file = None if output.folder is None else ResultFile(output.folder, plan.record(), resume=output.resume)
        stopped = threading.Event()
        loaded: list[LoadedModel] = []
        with Stopper() as stopper, contextlib.ExitStack() as stack:
            stopper.attach(stopped.set)
            results = [] if file is None else list(stack.enter_context(file).results)
            done = {result.key for result in results}
            tell = stack.enter_context(_progress(quiet=output.quiet))
            load = cache(lambda: _load(plan, loaded, tell))
            for result in _run(plan, items, load, done, stopped, tell):
                results.append(result)
                if file is not None:
                    file.add(result)
    asked = set(plan.cells())
    results = [result for result in results if result.cell in asked]
    rows = summarise(results)
    matched = match_tokens(rows, results)
    record = {
        "rows": [asdict(row) for row in rows],
        "equal_tokens": [asdict(entry) | {"verdict": entry.verdict} for entry in matched],
        "plan": _plan_record(plan),
        "machine": machine(loaded[0]) if loaded else {},
    }
    if output.folder is not None and rows:
        save_text(output.folder / "summary.json", safe_json(record, indent=2) + "\n")
        if drawing:
            plot(rows, output.folder)
    _print(rows, matched, record, output, stdout)
    return stopper.status if stopped.is_set() else 0


def _run(
    plan: Plan,
    items: dict[str, Any],
    load: Callable[[], Equipment],
    done: set[Any],
    stopped: threading.Event,
    tell: Callable[[str], None],
) -> Iterator[Result]:
    from frtool.eval.runner import run_cell

    for cell in plan.cells():
        name = f"{cell.task} {cell.algorithm} {cell.budget or ''}".strip()
        total = len(items[cell.task]) * len(plan.seeds_of(cell))
        right = 0
        found = run_cell(plan, cell, items[cell.task], load, done=done, interrupted=stopped.is_set)
        for count, result in enumerate(found, 1):
            right += result.correct
            tell(f"{name}: {count} of {total}, {right} right")
            yield result
        if stopped.is_set():
            return


def _load(plan: Plan, loaded: list[LoadedModel], tell: Callable[[str], None]) -> Equipment:
    from frtool.solving.equipment import Equipment

    equipment = Equipment(plan.search)
    equipment.load(tell)
    loaded.append(equipment.loaded)
    return equipment


@contextlib.contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[str], None]]:
    """One line on a terminal, nothing elsewhere."""
    from frtool.view.console import StderrConsole
    from frtool.view.safe import safe_line

    console = StderrConsole()
    if quiet or not console.is_terminal:
        yield lambda text: None
        return
    from rich.text import Text

    with console.status("") as status:
        yield lambda text: status.update(Text(safe_line(text, 200)))


def _plan_record(plan: Plan) -> dict[str, Any]:
    return {
        "tasks": plan.tasks,
        "algorithms": plan.algorithms,
        "budgets": plan.budgets,
        "baseline_budgets": plan.baseline_budgets,
        "seeds": plan.seeds,
        "offset": plan.offset,
        "limit": plan.limit,
        **plan.record(),
    }


def _print(rows: list[Summary], matched: list[Matched], record: dict[str, Any], output: Output, stdout: Any) -> None:
    from frtool.eval.report import matched_table, table

    if stdout is None:
        raise FrtoolError("there is no stdout")
    if output.json:
        stdout.write(safe_json(record, indent=2 if stdout.isatty() else None) + "\n")
        stdout.flush()
        return
    from rich.console import Console

    console = Console(file=stdout, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 160
    console.print(table(rows))
    if matched:
        console.print()
        console.print(matched_table(matched))
    if output.terminal_plot:
        from frtool.eval.report import terminal_charts

        stdout.write("\n" + terminal_charts(rows, console))
        stdout.flush()
