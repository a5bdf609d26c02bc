"""Many searches over one model: one KV pool and one decode batch, in which what the prompts share is stored once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING

from frtool.config import SearchConfig
from frtool.errors import FrtoolError, UsageError
from frtool.search.events import Ended, Event
from frtool.search.forest import Start, run_forest
from frtool.search.run import Search, pausing_search
from frtool.tasks.puzzle import parse_puzzle
from frtool.verify.background import Background, in_order

from .custom import Custom
from .equipment import Equipment, Progress, plant
from .problem import Problem
from .question import Question

if TYPE_CHECKING:
    from frtool.engine import Forest, Root
    from frtool.models.load import LoadedModel
    from frtool.scoring.reward_pool import RewardPool

# Rows of the batch, where nobody says.
_ROWS = {"cuda": 256, "cpu": 64}


@dataclass(slots=True, eq=False)
class Attempt:
    """A question and its search."""

    question: Question
    problem: Problem | None = None
    """Set when the search has begun."""
    error: Exception | None = None

    def failure(self, ended: Ended) -> FrtoolError | None:
        """Why the search failed or never began, if so."""
        if not ended.reason.startswith("failed"):
            return None
        if isinstance(self.error, FrtoolError):
            return self.error
        kind, _, said = ended.reason.removeprefix("failed: ").partition(": ")
        return FrtoolError(said if kind.endswith("Error") and said else f"{kind}: {said}".removesuffix(": "))


class Many:
    """Searches that are ready to run: `open` them, iterate `run` once, `interrupt` from anywhere.

    Each search gives the tree that it would give alone, whatever runs beside it: the seed, the budget and the
    algorithm's options hold for each.
    """

    def __init__(self, asked: SearchConfig, equipment: Equipment, forest: Forest, pool: RewardPool | None) -> None:
        """`asked` is the configuration before its defaults were filled in, which some prompts change."""
        self.config = equipment.config
        self._asked = asked
        self.loaded = equipment.loaded
        self.forest = forest
        self.active = 0
        """Searches under way."""
        self._equipment = equipment
        self._pool = pool
        self._trunk: Root | None = None
        self._interrupted = threading.Event()
        self._background = Background()

    @classmethod
    def open(
        cls,
        config: SearchConfig,
        on_progress: Progress | None = None,
        *,
        custom: Custom | None = None,
        loaded: LoadedModel | None = None,
        on_config: Callable[[SearchConfig], None] | None = None,
    ) -> Many:
        """Check the call and load the model, unless it is `loaded`. The configuration's own prompt does not count.

        Raises UsageError for a call that cannot work and ModelError for a model that cannot.
        """
        progress: Progress = on_progress or (lambda _: None)
        if config.expected is None and "math" in (config.verify, config.scorer):
            config = replace(config, expected="")  # each question brings its own
        equipment = Equipment(config, custom)
        if on_config is not None:
            on_config(equipment.config)
        equipment.load(progress, loaded)
        from frtool.engine import Forest

        if config.batch is None:
            config = replace(config, batch=_ROWS.get(equipment.loaded.device.type, _ROWS["cpu"]))
            equipment.config = replace(equipment.config, batch=config.batch)
        options = equipment.engine_options()
        if options.expected_tokens is not None:
            # The roots that find rows at one time, at half of the rows of a search that widens and narrows.
            options = replace(options, expected_tokens=options.expected_tokens * max(options.batch // 4, 2))
        many = cls(config, equipment, Forest(equipment.loaded, options), equipment.reward_pool())
        many._read_trunk()
        return many

    def run(
        self, questions: Iterable[Question | None], *, tick_seconds: float = float("inf")
    ) -> Generator[tuple[Attempt, Event], None, None]:
        """Every event with its question, `Ended` last; a question that fails has an `Ended` at least, and its error.

        Questions are taken as room for them comes. None says that there is none yet: the source is asked again after
        the next pass, and may wait a while where `active` is 0.
        """
        attempts: dict[int, Attempt] = {}

        def starts() -> Iterator[Start | None]:
            places = count()
            for question in questions:
                if question is None:
                    yield None
                else:
                    attempts[next(places)] = attempt = Attempt(question)
                    yield self._start(attempt, tick_seconds)

        try:
            score = self._pool.answer if self._pool is not None else lambda: None
            for place, event in run_forest(self.forest, starts(), self._interrupted.is_set, score):
                attempt = attempts[place]
                if isinstance(event, Ended):
                    del attempts[place]
                    if isinstance(attempt.error, FrtoolError):
                        attempt.error.__traceback__ = None  # it would keep the pool for as long as the error is kept
                yield attempt, event
        finally:
            self._background.close()
            if self._trunk is not None:
                self._trunk.close()

    def interrupt(self) -> None:
        """End every search at its next step, with its best answer so far, and begin none. Safe from signal handlers."""
        self._interrupted.set()

    def _read_trunk(self) -> None:
        """Read what every prompt begins with, such as a system prompt, and hold it for as long as this runs."""
        from frtool.engine import Root
        from frtool.models.prompt import chat_prompt_ids

        if self.config.is_embedded:
            return
        one, other = (chat_prompt_ids(self.loaded, prompt, self.config.system) for prompt in ("0", "x"))
        shared = next((i for i, (left, right) in enumerate(zip(one, other, strict=False)) if left != right), 0)
        if shared >= self.forest.allocator.block_size:
            self._trunk = Root(self.forest, one[:shared])

    def _start(self, attempt: Attempt, tick_seconds: float) -> Start:
        def start() -> Search:
            attempt.error = None
            try:
                return self._search(attempt, tick_seconds)
            except Exception as error:
                attempt.error = error
                raise

        return start

    def _search(self, attempt: Attempt, tick_seconds: float) -> Search:
        equipment = self._equipment
        problem = Problem.read(self._config(attempt.question), equipment.custom)
        config = problem.config
        assert config.max_depth is not None
        prompt_ids = equipment.prompt_ids(problem)
        scorer = equipment.scorer(problem, self._pool)
        root, free = plant(self.forest, prompt_ids, scorer)
        promising = None
        if problem.verifier is not None and problem.judge is not problem.verifier and not config.steer:
            promising = self._background.take(problem.verifier)
        search = pausing_search(
            algorithm=equipment.algorithm(config),
            generator=root,
            scorer=scorer,
            task=problem.task,
            verifier=promising or problem.verifier,
            budget=config.budget(),
            steer=config.steer,
            max_depth=config.max_depth,
            interrupted=self._interrupted.is_set,
            config=config.record(),
            model=equipment.model_record(problem, scorer, self.forest.mode),
            prompt=config.prompt,
            tick_seconds=tick_seconds,
        )

        def run() -> Search:
            try:
                yield from search
            finally:
                free()

        def watched() -> Search:
            attempt.problem = problem
            self.active += 1
            try:
                yield from run() if promising is None else in_order(run())
            except Exception as error:
                attempt.error = error
                raise
            finally:
                self.active -= 1

        return watched()

    def _config(self, question: Question) -> SearchConfig:
        """The configuration for one question. Raises UsageError for one without the answer that its judge needs."""
        config = self._asked
        expected = config.expected if question.expected is None else question.expected
        verify = config.verify
        if self._equipment.custom.verifier is not None:
            expected = None
        elif "math" in (verify, config.scorer):
            if not expected:
                raise UsageError("math-verify needs the problem's answer", hint='write it beside the "prompt"')
        elif question.expected is not None and verify == "auto" and parse_puzzle(question.prompt) is None:
            verify = "math"
        elif question.expected is not None:  # another rule judges
            expected = config.expected
        asked = replace(config, prompt=question.prompt, expected=expected, verify=verify)
        return self._equipment.resolve(asked)
