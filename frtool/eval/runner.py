"""Runs the cells of an evaluation: all problems of a cell share one pool and one decode batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from frtool.search.budget import Budget
from frtool.search.events import Ended, Event, NodeAdded, RunStarted
from frtool.search.forest import run_forest
from frtool.search.registry import make_algorithm
from frtool.search.run import Search, pausing_search
from frtool.tasks.arithmetic import ArithmeticTask, embedded_limit
from frtool.tasks.general import ExpressionTask, GeneralTask
from frtool.verify.background import Background, in_order

from .control import RANDOM_POLICY, random_rollouts
from .items import Item
from .plan import Cell, Plan
from .record import Result

if TYPE_CHECKING:
    from frtool.engine import Forest
    from frtool.models.load import LoadedModel
    from frtool.scoring.reward_pool import RewardPool
    from frtool.search.protocols import Task
    from frtool.solving.equipment import Equipment

Problem = tuple[Item, int]
"""A problem and a seed."""


def run_cell(
    plan: Plan,
    cell: Cell,
    items: Iterable[Item],
    load: Callable[[], Equipment],
    *,
    done: Collection[tuple[Cell, str, int]] = (),
    interrupted: Callable[[], bool] = lambda: False,
) -> Iterator[Result]:
    """The results of one cell as they come, those in `done` left out. Interrupted searches give none."""
    items = list(items)
    problems = [(item, seed) for seed in plan.seeds_of(cell) for item in items if (cell, item.id, seed) not in done]
    if not problems:
        return iter(())
    if cell.algorithm == RANDOM_POLICY:
        return _control(cell, problems, interrupted)
    return _searches(plan, cell, problems, load(), interrupted)


def _control(cell: Cell, problems: list[Problem], interrupted: Callable[[], bool]) -> Iterator[Result]:
    assert cell.budget is not None
    for item, seed in problems:
        if interrupted():
            return
        if item.puzzle is None:
            continue
        started = time.perf_counter()
        found = random_rollouts(item.puzzle, cell.budget, seed, item.id)
        seconds = time.perf_counter() - started
        yield Result(
            task=cell.task,
            algorithm=cell.algorithm,
            budget=cell.budget,
            id=item.id,
            seed=seed,
            correct=found.solved,
            passed=found.solved,
            answer=None,
            reward=None,
            reason="solved" if found.solved else "steps",
            steps=found.steps,
            nodes=found.steps,
            policy_tokens=0,
            scorer_tokens=0,
            prompt_tokens=0,
            latency=seconds,
            seconds=seconds,
        )


def _searches(
    plan: Plan, cell: Cell, problems: list[Problem], equipment: Equipment, interrupted: Callable[[], bool]
) -> Iterator[Result]:
    last = time.perf_counter()
    forest = _forest(plan, cell, problems, equipment)
    pool = equipment.reward_pool()
    tallies = [_Tally() for _ in problems]
    with closing(Background()) as background:
        starts = [_start(plan, cell, problem, forest, equipment, pool, background, interrupted) for problem in problems]
        score = pool.answer if pool is not None else lambda: None
        for place, event in run_forest(forest, starts, interrupted, score):
            tallies[place].see(event)
            if isinstance(event, Ended) and event.reason != "interrupted":
                now = time.perf_counter()
                yield tallies[place].result(cell, problems[place], event, now - last)
                last = now


def _forest(plan: Plan, cell: Cell, problems: list[Problem], equipment: Equipment) -> Forest:
    from frtool.engine import EngineOptions, Forest

    algorithm = make_algorithm(cell.algorithm, plan.fitted(cell, problems[0][0]))
    config = replace(plan.search, prompt=problems[0][0].prompt, steps=cell.budget or plan.path_steps).resolved()
    options = EngineOptions.from_config(config, algorithm, reads_rewards=equipment.reads_rewards)
    if options.expected_tokens is not None:
        together = min(len(problems), max(options.batch // 2, 2))
        options = replace(options, expected_tokens=options.expected_tokens * together)
    return Forest(equipment.loaded, options)


def _start(
    plan: Plan,
    cell: Cell,
    problem: Problem,
    forest: Forest,
    equipment: Equipment,
    pool: RewardPool | None,
    background: Background,
    interrupted: Callable[[], bool],
) -> Callable[[], Search]:
    def start() -> Search:
        from frtool.solving.equipment import plant

        item, seed = problem
        task, prompt_ids = _prompt(plan, item, forest.loaded)
        scorer = equipment.model_scorer(item.prompt, pool)
        promising = background.take(item.verifier)
        settings: dict[str, Any] = {
            "algorithm": make_algorithm(cell.algorithm, plan.fitted(cell, item)),
            "scorer": scorer,
            "task": task,
            "verifier": promising or item.verifier,
            "budget": Budget(steps=cell.budget),
            "max_depth": plan.search.max_depth or replace(plan.search, prompt=item.prompt).resolved().max_depth,
            "interrupted": interrupted,
            "tick_seconds": float("inf"),
        }
        root, free = plant(forest, prompt_ids, scorer, seed)

        def search() -> Search:
            try:
                yield from pausing_search(generator=root, **settings)
            finally:
                free()

        return search() if promising is None else in_order(search())

    return start


def _prompt(plan: Plan, item: Item, loaded: LoadedModel) -> tuple[Task, list[int]]:
    """What the problem's paths are read as, and the prompt's tokens."""
    from frtool.errors import UsageError
    from frtool.models.prompt import chat_prompt_ids, plain_prompt_ids

    if plan.search.is_embedded:
        if item.puzzle is None:
            raise UsageError("the embedded model solves arithmetic puzzles only")
        limit = embedded_limit(item.puzzle)
        if limit is not None:
            raise UsageError(limit)
        puzzle_task = ArithmeticTask(item.puzzle)
        return puzzle_task, plain_prompt_ids(loaded, puzzle_task.prompt_text)
    task = GeneralTask() if item.puzzle is None else ExpressionTask(item.puzzle)
    return task, chat_prompt_ids(loaded, item.prompt, plan.search.system)


class _Tally:
    """Counts one search's events."""

    def __init__(self) -> None:
        self.steps = 0
        self.passed = False
        self.began = 0.0

    def see(self, event: Event) -> None:
        if isinstance(event, NodeAdded):
            self.steps += 1
            self.passed = self.passed or event.verified is True
        elif isinstance(event, RunStarted):
            self.began = time.perf_counter()

    def result(self, cell: Cell, problem: Problem, ended: Ended, seconds: float) -> Result:
        item, seed = problem
        return Result(
            task=cell.task,
            algorithm=cell.algorithm,
            budget=cell.budget,
            id=item.id,
            seed=seed,
            correct=ended.verified is True,
            passed=self.passed,
            answer=ended.answer,
            reward=ended.reward,
            reason=ended.reason,
            steps=self.steps,
            nodes=ended.nodes,
            policy_tokens=ended.policy_tokens,
            scorer_tokens=ended.scorer_tokens,
            prompt_tokens=ended.prompt_tokens,
            latency=time.perf_counter() - self.began if self.began else 0.0,
            seconds=seconds,
            kv_peak_bytes=ended.kv_peak_bytes,
            kv_unshared_peak_bytes=ended.kv_unshared_peak_bytes,
        )
