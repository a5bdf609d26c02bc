"""The draws: the same for the same name, independent of all others, and of the distributions they claim."""

from __future__ import annotations

import math
import statistics

import pytest

from frtool.search.noise import Stream


def test_a_stream_depends_on_its_seed_and_name_alone():
    first, second = Stream(1, "0.1"), Stream(1, "0.2")
    mixed = [[first.uniform(), second.uniform()] for _ in range(20)]
    for i, name in enumerate(("0.1", "0.2")):
        alone = Stream(1, name)
        assert [pair[i] for pair in mixed] == [alone.uniform() for _ in range(20)]
    assert len({Stream(seed, name).uniform() for seed in (1, 2, 12) for name in ("0.1", "0.2", "0.11")}) == 9


def test_the_numbers_never_change():
    stream = Stream(42, "0.1")
    assert [stream.uniform() for _ in range(2)] == [0.38647411268350484, 0.949175716208123]


@pytest.mark.parametrize(
    ("draw", "mean", "deviation"),
    [
        (Stream.uniform, 0.5, math.sqrt(1 / 12)),
        (Stream.normal, 0, 1),
        (Stream.gumbel, 0.5772, math.pi / math.sqrt(6)),
        (lambda s: math.exp(s.log_gamma(0.5)), 0.5, math.sqrt(0.5)),
        (lambda s: math.exp(s.log_gamma(7.5)), 7.5, math.sqrt(7.5)),
        (lambda s: s.beta(0.5, 0.5), 0.5, math.sqrt(1 / 8)),
        (lambda s: s.beta(6, 2), 0.75, math.sqrt(12 / (64 * 9))),
    ],
)
def test_draws_have_the_moments_of_their_distribution(draw, mean, deviation):
    stream = Stream(5, "moments")
    draws = [draw(stream) for _ in range(6000)]
    assert statistics.fmean(draws) == pytest.approx(mean, abs=4 * deviation / math.sqrt(6000))
    assert statistics.stdev(draws) == pytest.approx(deviation, rel=0.08)


def test_a_beta_of_tiny_shapes_stays_a_number():
    stream = Stream(0, "tiny")
    draws = [stream.beta(0.001, 0.001) for _ in range(200)]
    assert all(0 <= draw <= 1 for draw in draws)
    assert 0.3 < statistics.fmean(draws) < 0.7
