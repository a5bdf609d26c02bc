"""Whole searches with the embedded model: what of their time the model takes, and what the machinery around it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from frtool.config import SearchConfig
from frtool.models.load import LoadedModel, load_model
from frtool.search.events import Ended, NodeAdded
from frtool.session import Session

from .machine import machine
from .search_baseline import Branch, branches_of, hugging_face

if TYPE_CHECKING:
    from frtool.engine import Engine

PUZZLES = ("Make 24 from 4, 5, 6, 10", "Make 24 from 2, 3, 7, 8", "Use 3 7 25 50 to reach 372")
ALGORITHMS = ("best-of-n", "beam", "mcts")
# Paths of best-of-n, so that three steps each come near to what the others may spend.
_STEPS_A_PATH = 3


@dataclass(slots=True)
class SearchRow:
    """One algorithm over all puzzles. Seconds are sums over them, in the fastest of the repeats of each."""

    algorithm: str
    seconds: float = 0.0
    """From the first event to the last; the model was loaded and the prompt read before."""
    model_seconds: float = 0.0
    """Forward passes, sampling and the reading of rewards. On a GPU the whole poll, whose passes run ahead."""
    engine_seconds: float = 0.0
    """Everything else in the engine: forks, block tables, text, stop detection."""
    nodes: int = 0
    """Distinct nodes."""
    steps: int = 0
    """Steps grown, copies of others among them."""
    tokens: int = 0
    """Sampled, and spent on rewards."""
    kv_peak_bytes: int = 0
    kv_unshared_peak_bytes: int = 0
    """Had every branch had blocks of its own; peaks of the puzzles summed up."""
    peer_tokens_per_second: float | None = None
    """One `generate` of transformers for every step, with as many tokens."""

    @property
    def search_seconds(self) -> float:
        """Outside the engine: selection, the tree, judging of answers, events."""
        return self.seconds - self.model_seconds - self.engine_seconds

    @property
    def host_share(self) -> float:
        return 1 - self.model_seconds / self.seconds

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {
            "nodes_per_second": self.nodes / self.seconds,
            "tokens_per_second": self.tokens / self.seconds,
            "search_us_per_step": self.search_seconds / self.steps * 1e6,
            "engine_us_per_step": self.engine_seconds / self.steps * 1e6,
            "host_share": self.host_share,
            "kv_saved": self.kv_unshared_peak_bytes / self.kv_peak_bytes,
        }


@dataclass(slots=True)
class SearchReport:
    machine: dict[str, Any]
    settings: dict[str, Any]
    rows: list[SearchRow] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {"machine": self.machine, "settings": self.settings, "rows": [row.to_dict() for row in self.rows]}


def run(
    *,
    algorithms: list[str],
    steps: int = 192,
    batch: int = 64,
    repeats: int = 3,
    baseline: bool = True,
    device: str | None = None,
    dtype: str | None = None,
    on_progress: Callable[[str], None] = lambda _: None,
) -> SearchReport:
    """Search each puzzle `repeats` times with each algorithm, up to `steps` steps in a batch of `batch` rows.

    With `baseline`, transformers generates a sample of the same steps one after another. Raises UsageError for a name
    that is no algorithm.
    """
    loaded = load_model("embedded", device=device, dtype=dtype, on_progress=on_progress, light=True)
    report = SearchReport(
        machine(loaded),
        {"puzzles": list(PUZZLES), "steps": steps, "batch": batch, "repeats": repeats, "seed": 0},
    )
    grown: dict[str, list[Branch]] = {}
    for algorithm in algorithms:
        row = SearchRow(algorithm)
        for puzzle in PUZZLES:
            on_progress(f"{algorithm}: {puzzle}")
            options = {"n": max(steps // _STEPS_A_PATH, 1)} if algorithm == "best-of-n" else {}
            config = SearchConfig(
                prompt=puzzle, algorithm=algorithm, algorithm_options=options, steps=steps, batch=batch
            )
            tries = [_search(config, loaded) for _ in range(repeats)]
            best = min(tries, key=lambda one: one.seconds)
            _add(row, best.row)
            grown.setdefault(algorithm, []).extend(best.branches)
        report.rows.append(row)
    if baseline:
        on_progress("transformers, one generate a step")
        rates = hugging_face(loaded, grown)
        for row in report.rows:
            row.peer_tokens_per_second = rates[row.algorithm]
    return report


@dataclass(slots=True)
class _Search:
    row: SearchRow
    branches: list[Branch]

    @property
    def seconds(self) -> float:
        return self.row.seconds


def _search(config: SearchConfig, loaded: LoadedModel) -> _Search:
    session = Session.open(config, loaded=loaded)
    with _metered(session.engine) as spent:
        started = time.perf_counter()
        events = list(session.run())
        seconds = time.perf_counter() - started
    ended = events[-1]
    assert isinstance(ended, Ended)
    nodes = [event for event in events if isinstance(event, NodeAdded)]
    row = SearchRow(
        config.algorithm,
        seconds=seconds,
        model_seconds=spent["model"],
        engine_seconds=spent["engine"] - spent["model"],
        nodes=ended.nodes,
        steps=len(nodes),
        tokens=ended.policy_tokens + ended.scorer_tokens,
        kv_peak_bytes=ended.kv_peak_bytes,
        kv_unshared_peak_bytes=ended.kv_unshared_peak_bytes,
    )
    prompt = session.engine.trunk.tokens
    session.close()
    return _Search(row, branches_of(nodes, prompt))


def _add(row: SearchRow, one: SearchRow) -> None:
    for name in ("seconds", "model_seconds", "engine_seconds", "nodes", "steps", "tokens"):
        setattr(row, name, getattr(row, name) + getattr(one, name))
    row.kv_peak_bytes += one.kv_peak_bytes
    row.kv_unshared_peak_bytes += one.kv_unshared_peak_bytes


@contextmanager
def _metered(engine: Engine) -> Iterator[dict[str, float]]:
    """Seconds inside the engine, and of these the seconds that the model takes."""
    spent = {"engine": 0.0, "model": 0.0}
    forest = engine.forest

    def meter(owner: Any, method: str, account: str) -> None:
        call = getattr(owner, method)

        def timed(*args: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return call(*args, **options)
            finally:
                spent[account] += time.perf_counter() - started

        setattr(owner, method, timed)

    for method in ("submit", "poll", "keep", "drop", "release", "cancel", "kv"):
        meter(engine, method, "engine")
    if forest.passes is not None:
        meter(forest, "poll", "model")
    else:
        meter(forest.batch, "forward", "model")
        meter(forest.reader, "read", "model")
    yield spent
