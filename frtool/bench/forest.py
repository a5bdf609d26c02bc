"""Problems a minute of many searches in one decode batch, against the same searches one after the other.

`python -m frtool.bench.forest --output FILE.json`, on the embedded model; `--help` lists the rest.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from frtool.config import SearchConfig
from frtool.search.events import Ended
from frtool.solving.many import Many
from frtool.solving.question import Question

if TYPE_CHECKING:
    from frtool.models.load import LoadedModel

Outcome = dict[str, tuple[str | None, int, int]]
"""Answer, nodes and tokens by prompt."""


@dataclass(frozen=True, slots=True)
class ForestReport:
    """Seconds are medians over the repeats, which take turns; the model is loaded before."""

    problems: int
    rollouts: int
    """Of each problem: best-of-n with this n."""
    batch_alone: int
    batch_together: int
    repeats: int
    seconds_alone: float
    seconds_together: float
    same: bool
    """Whether both gave every problem the same answer, nodes and tokens. On a GPU sums may round otherwise."""
    same_problems: int
    tokens: int
    """Sampled, of all problems."""

    @property
    def speedup(self) -> float:
        return self.seconds_alone / self.seconds_together

    def record(self) -> dict[str, Any]:
        minute = 60 * self.problems
        return asdict(self) | {
            "problems_a_minute_alone": minute / self.seconds_alone,
            "problems_a_minute_together": minute / self.seconds_together,
            "speedup": self.speedup,
        }


def run_forest_benchmark(
    loaded: LoadedModel, *, problems: int = 32, rollouts: int = 16, batch: int | None = None, repeats: int = 3
) -> ForestReport:
    """`batch` is that of the forest; a lone search has a row for each of its rollouts. Raises UsageError."""
    from frtool.eval.tasks import load_items

    prompts = [item.prompt for item in load_items(f"countdown:n={problems}")]
    config = SearchConfig(
        prompt=prompts[0], algorithm="best-of-n", algorithm_options={"n": rollouts}, steps=8 * rollouts, batch=rollouts
    )
    together = _batch(loaded, config, batch)
    _alone(loaded, config, prompts[:1])  # what compiles or allocates at first use
    _together(loaded, config, prompts[:2], together)
    seconds: tuple[list[float], list[float]] = [], []
    for _ in range(repeats):
        first, lone = _timed(lambda: _alone(loaded, config, prompts))
        second, found = _timed(lambda: _together(loaded, config, prompts, together))
        seconds[0].append(first)
        seconds[1].append(second)
    same = sum(lone[prompt] == found[prompt] for prompt in prompts)
    return ForestReport(
        problems=problems,
        rollouts=rollouts,
        batch_alone=rollouts,
        batch_together=together,
        repeats=repeats,
        seconds_alone=median(seconds[0]),
        seconds_together=median(seconds[1]),
        same=same == problems,
        same_problems=same,
        tokens=sum(tokens for _, _, tokens in found.values()),
    )


def _timed(run: Callable[[], Outcome]) -> tuple[float, Outcome]:
    began = time.perf_counter()
    outcome = run()
    return time.perf_counter() - began, outcome


def _alone(loaded: LoadedModel, config: SearchConfig, prompts: list[str]) -> Outcome:
    """One after the other, in an engine that stays: what it captured or compiled for one serves the next."""
    many = Many.open(config, loaded=loaded)

    def one_by_one() -> Iterator[Question | None]:
        for prompt in prompts:
            while many.active:
                yield None
            yield Question(prompt)

    return _outcome(many, one_by_one())


def _batch(loaded: LoadedModel, config: SearchConfig, batch: int | None) -> int:
    return Many.open(replace(config, batch=batch), loaded=loaded).forest.capacity


def _together(loaded: LoadedModel, config: SearchConfig, prompts: list[str], batch: int) -> Outcome:
    many = Many.open(replace(config, batch=batch), loaded=loaded)
    return _outcome(many, (Question(prompt) for prompt in prompts))


def _outcome(many: Many, questions: Iterable[Question | None]) -> Outcome:
    outcome: Outcome = {}
    for attempt, event in many.run(questions):
        if isinstance(event, Ended):
            outcome[attempt.question.prompt] = (event.answer, event.nodes, event.policy_tokens)
    return outcome


def main() -> None:
    from frtool.bench.machine import machine, put_out
    from frtool.models.load import load_model

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=32)
    parser.add_argument("--rollouts", type=int, default=16)
    parser.add_argument("--batch", type=int, help="rows of the forest's batch; default as for --input")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device")
    parser.add_argument("--dtype", help="default: what the model's device does best")
    parser.add_argument("--note", help="kept in the file")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    loaded = load_model("embedded", device=given.device, dtype=given.dtype)
    report = run_forest_benchmark(
        loaded, problems=given.problems, rollouts=given.rollouts, batch=given.batch, repeats=given.repeats
    )
    record = {"machine": machine(loaded), "note": given.note, **report.record()}
    put_out(record, given.output)


if __name__ == "__main__":
    main()
