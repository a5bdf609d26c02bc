"""One search from a configuration to its last event: task, model, engine, algorithm and judges, wired together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from frtool.config import SearchConfig
from frtool.resume import check_surroundings
from frtool.search.resume import continue_search
from frtool.search.run import run_search
from frtool.solving.custom import Custom
from frtool.solving.equipment import Equipment, attach
from frtool.solving.problem import Problem

if TYPE_CHECKING:
    from frtool.engine import Engine
    from frtool.models.load import LoadedModel
    from frtool.search.events import Event
    from frtool.search.protocols import Scorer
    from frtool.search.record import Record

Progress = Callable[[str], None]


class Session:
    """A search that is ready to run: `open` it, iterate `run` once, `interrupt` it from anywhere."""

    def __init__(self, equipment: Equipment, problem: Problem, engine: Engine, scorer: Scorer) -> None:
        self.config = problem.config
        self.loaded = equipment.loaded
        self.engine = engine
        self.algorithm = equipment.algorithm(problem.config)
        self.scorer = scorer
        self.task = problem.task
        self.verifier = problem.verifier
        self._equipment = equipment
        self._problem = problem
        self._interrupted = threading.Event()

    @classmethod
    def open(
        cls,
        config: SearchConfig,
        on_progress: Progress | None = None,
        *,
        custom: Custom | None = None,
        loaded: LoadedModel | None = None,
        on_config: Callable[[SearchConfig], None] | None = None,
    ) -> Session:
        """Check the call, load the model unless it is `loaded`, read the prompt.

        `on_progress` gets one short line for each stage, `on_config` the resolved configuration before the model loads.
        Raises UsageError for a call that cannot work, before the model loads wherever that can be known, and
        ModelError for a model that cannot.
        """
        progress: Progress = on_progress or (lambda _: None)
        equipment = Equipment(config, custom)
        problem = Problem.read(equipment.config, equipment.custom)
        if on_config is not None:
            on_config(problem.config)
        equipment.load(progress, loaded)
        scorer = equipment.scorer(problem)
        prompt_ids = equipment.prompt_ids(problem)
        total = len(prompt_ids)
        progress(f"reading the prompt ({total:,} tokens)")
        from frtool.engine import Engine

        def on_prefill(read: int) -> None:
            if read < total:
                progress(f"reading the prompt ({read:,} of {total:,} tokens)")

        engine = Engine(
            equipment.loaded,
            prompt_ids,
            equipment.engine_options(),
            on_prefill=on_prefill,
        )
        attach(scorer, engine)
        return cls(equipment, problem, engine, scorer)

    def run(self, record: Record | None = None) -> Iterator[Event]:
        """All events of the search, `RunStarted` first and `Ended` last.

        With a `record` of a search that broke off it goes on: see `search.resume.continue_search`. Raises UsageError
        where that search began with another model or machine.
        """
        config = self.config
        assert config.max_depth is not None
        settings: dict[str, Any] = {
            "algorithm": self.algorithm,
            "generator": self.engine,
            "scorer": self.scorer,
            "task": self.task,
            "verifier": self.verifier,
            "budget": config.budget(),
            "steer": config.steer,
            "max_depth": config.max_depth,
            "interrupted": self._interrupted.is_set,
            "config": config.record(),
            "model": self.model_record(),
            "prompt": config.prompt,
        }
        if record is None:
            return run_search(**settings)
        check_surroundings(record.started.model, settings["model"])
        return continue_search(record, **settings)

    def close(self) -> None:
        """Free the KV; nothing works afterwards."""
        self.engine.close()
        clear: Callable[[], None] = getattr(self.scorer, "clear", lambda: None)
        clear()

    def interrupt(self) -> None:
        """End the search at its next step, with the best answer so far. Safe from a signal handler."""
        self._interrupted.set()

    def model_record(self) -> dict[str, Any]:
        """What the trace says of the model and of what it runs on."""
        return self._equipment.model_record(self._problem, self.scorer, self.engine.forest.mode)
