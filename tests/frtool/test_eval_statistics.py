"""Intervals and summaries of an evaluation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frtool.eval.matched import match_tokens
from frtool.eval.record import Result
from frtool.eval.statistics import paired_difference, wilson
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


def test_a_paired_difference_is_the_adjusted_wald_interval() -> None:
    # 50 pairs, of which 8 and 2 disagree: (8 + 1) / 52 and (2 + 1) / 52, by hand.
    mean, low, high = paired_difference([1.0] * 8 + [-1.0] * 2 + [0.0] * 40)
    assert mean == pytest.approx(0.12)
    assert (low, high) == (pytest.approx(-0.01136, abs=5e-5), pytest.approx(0.24213, abs=5e-5))
    assert paired_difference([]) == (0.0, -1.0, 1.0)
    mean, low, high = paired_difference([0.0] * 10)
    assert low < mean == 0 < high


def test_best_of_n_is_interpolated_between_its_two_nearest_budgets() -> None:
    names = "abcdefghij"

    def cell(algorithm: str, budget: int, tokens: int, right: str) -> list[Result]:
        return [
            result(x, algorithm=algorithm, budget=budget, correct=x in right, policy_tokens=tokens - 10) for x in names
        ]

    results = [
        *cell("beam", 48, 200, "abcdefgh"),
        *cell("mcts", 48, 400, "a"),
        *cell("rebase", 48, 401, "a"),
        *cell("best-of-n", 90, 400, "abcdef"),
        *cell("best-of-n", 12, 50, "ab"),
        *cell("best-of-n", 24, 100, "abc"),
    ]
    beam, mcts, rebase = match_tokens(summarise(results), results)
    assert (beam.algorithm, beam.tokens, beam.accuracy) == ("beam", 200, 0.8)
    assert beam.best_of_n == pytest.approx(0.45)  # half way from 100 to 400 in the logarithm: of .3 and .6
    low, high = wilson(3, 10), wilson(6, 10)
    assert beam.low == pytest.approx((low[0] + high[0]) / 2)
    assert beam.high == pytest.approx((low[1] + high[1]) / 2)
    assert beam.difference == pytest.approx(0.35)
    # Of d, e and f it has half more, of g and h all.
    assert (beam.difference, beam.difference_low, beam.difference_high) == pytest.approx(
        paired_difference([0.0] * 3 + [0.5] * 3 + [1.0] * 2 + [0.0] * 2)
    )
    assert mcts.best_of_n == pytest.approx(0.6)  # at one of the budgets
    assert mcts.verdict == "loses"
    assert (rebase.best_of_n, rebase.verdict) == (None, "outside")


def test_seeds_of_one_problem_count_as_one_pair() -> None:
    results = []
    for seed in (0, 1):
        for x in "ab":
            results.append(result(x, seed=seed, algorithm="beam", policy_tokens=90, correct=True))
            for budget, tokens in ((12, 40), (48, 190)):
                results.append(
                    result(x, seed=seed, algorithm="best-of-n", budget=budget, policy_tokens=tokens, correct=bool(seed))
                )
    (beam,) = match_tokens(summarise(results), results)
    assert (beam.difference, beam.difference_low, beam.difference_high) == pytest.approx(paired_difference([0.5, 0.5]))
