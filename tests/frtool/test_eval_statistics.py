"""Intervals and summaries of an evaluation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frtool.eval.record import Result
from frtool.eval.statistics import wilson
from frtool.eval.summary import summarise


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [  # Newcombe 1998, Statistics in Medicine 17, 857-872, table I, and R's prop.test(correct = FALSE)
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_wilson_gives_the_published_intervals(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson(successes, trials) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_is_symmetric(counts: tuple[int, int]) -> None:
    successes, trials = counts
    low, high = wilson(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1
    other_low, other_high = wilson(trials - successes, trials)
    assert (low, high) == (pytest.approx(1 - other_high), pytest.approx(1 - other_low))


def test_wilson_refuses_what_is_no_count() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="3 successes of 2"):
        wilson(3, 2)


def result(id: str, **changes: object) -> Result:
    values: dict[str, object] = {
        "task": "t", "algorithm": "beam", "budget": 48, "id": id, "seed": 0, "correct": False, "passed": False,
        "answer": "1", "reward": 0.5, "reason": "finished", "steps": 10, "nodes": 8, "policy_tokens": 100,
        "scorer_tokens": 10, "prompt_tokens": 5, "latency": 1.0, "seconds": 0.5, "kv_peak_bytes": 100,
        "kv_unshared_peak_bytes": 250,
    }  # fmt: skip
    return Result(**(values | changes))  # type: ignore[arg-type]


def test_a_summary_counts_a_cell_and_a_repeated_result_once() -> None:
    rows = summarise(
        [
            result("a", correct=True, passed=True, steps=20),
            result("b", passed=True, kv_peak_bytes=200, kv_unshared_peak_bytes=600),
            result("b", passed=True, kv_peak_bytes=200, kv_unshared_peak_bytes=600),
            result("c", reason="failed: X", seconds=2.0),
            result("a", algorithm="mcts"),
        ]
    )
    assert [(row.algorithm, row.n, row.correct) for row in rows] == [("beam", 3, 1), ("mcts", 1, 0)]
    beam = rows[0]
    assert beam.accuracy == pytest.approx(1 / 3)
    assert (beam.low, beam.high) == wilson(1, 3)
    assert beam.passed == pytest.approx(2 / 3)
    assert beam.failed == 1
    assert beam.steps == pytest.approx(40 / 3)
    assert beam.seconds == pytest.approx(1.0)
    assert beam.kv_saved == 3.0
