"""Tokens are drawn from the distribution that the options describe, held against transformers' own processors."""

from __future__ import annotations

import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from frtool.engine.options import EngineOptions
from frtool.engine.sampling import Sampler

CPU = torch.device("cpu")


def expected(logits: torch.Tensor, options: EngineOptions) -> torch.Tensor:
    """Probabilities [vocab] after transformers' processors, in their order."""
    steps = LogitsProcessorList([TemperatureLogitsWarper(options.temperature)])
    if options.top_k:
        steps.append(TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        steps.append(TopPLogitsWarper(options.top_p))
    if options.min_p:
        steps.append(MinPLogitsWarper(options.min_p))
    return torch.softmax(steps(torch.zeros(1, 1, dtype=torch.long), logits[None].clone())[0], -1)


def evenly(count: int) -> torch.Tensor:
    """Uniform numbers without gaps: each token is drawn in proportion to its probability up to rounding."""
    return (torch.arange(count) + 0.5) / count


OPTIONS = [
    {},
    {"temperature": 0.5},
    {"temperature": 1.7},
    {"top_k": 5},
    {"top_p": 0.7},
    {"top_p": 0.05},
    {"min_p": 0.1},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
    {"temperature": 1.3, "top_k": 8, "top_p": 0.6},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("vocab", [40, 3000])
def test_frequencies_are_those_of_transformers(options: dict[str, float], vocab: int) -> None:
    settings = EngineOptions(**options)
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(vocab)) * 2
    count = 4000
    tokens, _, _ = Sampler(settings, CPU).sample(logits.expand(count, vocab), evenly(count))
    frequencies = torch.bincount(tokens, minlength=vocab) / count
    wanted = expected(logits, settings)
    assert (frequencies - wanted).abs().max() < 4e-4
    assert not frequencies[wanted == 0].any()


def test_noise_gives_the_distribution_too() -> None:
    from frtool.engine.noise import step_key, uniforms

    logits = torch.randn(12, generator=torch.Generator().manual_seed(1))
    count = 40_000
    keys = torch.tensor([step_key(0, "0", i) % 2**63 for i in range(count)]).numpy().astype("uint64")
    numbers = torch.from_numpy(uniforms(keys, keys * 0))
    tokens, _, _ = Sampler(EngineOptions(temperature=0.8), CPU).sample(logits.expand(count, 12), numbers)
    wanted = expected(logits, EngineOptions(temperature=0.8)) * count
    chi_square = ((torch.bincount(tokens, minlength=12) - wanted) ** 2 / wanted).sum()
    assert chi_square < 37.4  # 11 degrees of freedom, p = 1e-4


@pytest.mark.parametrize("options", [{}, {"temperature": 0.3, "top_p": 0.5}, {"greedy": True}], ids=str)
def test_logprobs_are_of_the_model_whatever_was_truncated(options: dict[str, float]) -> None:
    logits = torch.randn(64, 500) * 3
    tokens, logprobs, _ = Sampler(EngineOptions(**options), CPU).sample(logits, torch.rand(64))
    wanted = torch.log_softmax(logits.double(), -1).gather(1, tokens[:, None]).squeeze(1)
    assert (logprobs - wanted).abs().max() < 1e-5


def test_an_improbable_token_keeps_a_finite_logprob() -> None:
    logits = torch.tensor([[0.0, -200.0]])
    tokens, logprobs, _ = Sampler(EngineOptions(temperature=1e6), CPU).sample(logits, torch.tensor([0.9]))
    assert tokens.tolist() == [1]
    assert logprobs.tolist() == [-200.0]


def test_greedy_and_temperature_zero_take_the_most_probable() -> None:
    logits = torch.randn(20, 100)
    for options in (EngineOptions(greedy=True), EngineOptions(temperature=0)):
        tokens, _, _ = Sampler(options, CPU).sample(logits, None)
        assert torch.equal(tokens, logits.argmax(-1))


@pytest.mark.parametrize("options", [{}, {"temperature": 0.5}, {"top_p": 0.9}, {"top_k": 4}, {"min_p": 0.1}], ids=str)
@pytest.mark.parametrize("vocab", [100, 3000])
def test_rows_of_negative_noise_take_the_most_probable_and_change_no_other(
    options: dict[str, float], vocab: int
) -> None:
    logits, noise = torch.randn(40, vocab), torch.rand(40)
    greedy = noise.clone()
    greedy[::3] = -1.0
    wanted, logprobs, _ = Sampler(EngineOptions(**options), CPU).sample(logits, noise)
    tokens, found, _ = Sampler(EngineOptions(**options), CPU).sample(logits, greedy)
    wanted[::3] = logits[::3].argmax(-1)
    assert torch.equal(tokens, wanted)
    sampled = greedy >= 0
    assert torch.equal(found[sampled], logprobs[sampled])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("vocab", [40, 3000, 40_000])
def test_the_numbers_of_an_interval_and_no_others_draw_its_token(options: dict[str, float], vocab: int) -> None:
    sampler = Sampler(EngineOptions(**options), CPU)
    logits = (torch.randn(vocab, generator=torch.Generator().manual_seed(vocab)) * 3).expand(400, vocab)
    tokens, _, intervals = sampler.sample(logits, evenly(400))
    low, high = intervals.T
    # Sums that are taken in another order differ by roundings of 1.
    inside = 1e-6
    within = (low + inside < high - inside).nonzero().squeeze(1)
    for numbers in (low + inside, high - inside):
        again, _, same = sampler.sample(logits[within], numbers[within])
        assert torch.equal(again, tokens[within])
        assert torch.equal(same, intervals[within])
    after, _, _ = sampler.sample(logits, (high + inside).clamp(max=1 - inside))
    beyond = high < 1 - 2 * inside
    assert not (after == tokens)[beyond].any()
    wanted = expected(logits[0], EngineOptions(**options))
    assert torch.allclose(high - low, wanted[tokens], atol=2e-6)


@pytest.mark.parametrize("options", [{}, {"top_p": 0.9}, {"top_k": 4}], ids=str)
@pytest.mark.parametrize("vocab", [100, 3000])
def test_a_forced_token_is_taken_with_its_logprob_and_changes_no_other_row(
    options: dict[str, float], vocab: int
) -> None:
    from frtool.engine.noise import forced

    logits, noise = torch.randn(40, vocab), torch.rand(40)
    sampler = Sampler(EngineOptions(**options), CPU)
    wanted, _, intervals = sampler.sample(logits, noise)
    mixed = noise.clone()
    mixed[::3] = torch.tensor([forced(token) for token in range(14)])
    tokens, logprobs, found = sampler.sample(logits, mixed)
    wanted[::3] = torch.arange(14)
    intervals[::3] = 0.0
    assert torch.equal(tokens, wanted)
    assert torch.equal(found, intervals)
    assert torch.allclose(logprobs, torch.log_softmax(logits, -1).gather(1, wanted[:, None])[:, 0], atol=1e-5)


def test_a_tiny_temperature_does_not_overflow() -> None:
    logits = torch.randn(20, 100) * 10
    tokens, logprobs, _ = Sampler(EngineOptions(temperature=1e-30), CPU).sample(logits, torch.rand(20))
    assert torch.equal(tokens, logits.argmax(-1))
    assert logprobs.isfinite().all()


@pytest.mark.parametrize("options", [{}, {"temperature": 0.5}, {"top_p": 0.9}, {"top_k": 4}, {"greedy": True}], ids=str)
def test_suppressed_tokens_are_never_drawn(options: dict[str, float]) -> None:
    logits = torch.randn(10)
    logits[3] = 9.0
    tokens, _, _ = Sampler(EngineOptions(**options), CPU, suppressed=[3, 7]).sample(
        logits.expand(5000, 10), evenly(5000)
    )
    assert not {3, 7} & set(tokens.tolist())


def test_extreme_noise_stays_inside_the_kept_tokens() -> None:
    logits = torch.full((2, 300), float("-inf"))
    logits[:, 100:103] = 0.0
    numbers = torch.tensor([2.0**-24, 1 - 2.0**-24])
    for options in ({}, {"top_p": 0.99}, {"top_k": 2}, {"min_p": 0.5}):
        tokens, _, _ = Sampler(EngineOptions(**options), CPU).sample(logits, numbers)
        assert all(100 <= token <= 102 for token in tokens.tolist())


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.8}, {"top_p": 0.9}, {"top_p": 0.999}, {"top_k": 50}, {"min_p": 0.01}], ids=str
)
def test_a_row_has_the_same_bits_whatever_the_others_are(options: dict[str, float]) -> None:
    logits = torch.randn(24, 40_000) * torch.linspace(0.5, 6, 24)[:, None]
    numbers = torch.rand(24)
    sampler = Sampler(EngineOptions(**options), CPU)
    tokens, logprobs, intervals = sampler.sample(logits, numbers)
    for rows in ([0], [23], [5, 6, 7], list(range(8, 24))):
        some, their, own = sampler.sample(logits[rows], numbers[rows])
        assert torch.equal(some, tokens[rows])
        assert torch.equal(own, intervals[rows])
        assert torch.equal(their, logprobs[rows])


def test_nan_logits_give_a_nan_logprob_in_their_row_only() -> None:
    logits = torch.randn(4, 50)
    logits[2, 7] = float("nan")
    for options in ({}, {"top_p": 0.5}, {"greedy": True}):
        _, logprobs, _ = Sampler(EngineOptions(**options), CPU).sample(logits, torch.rand(4))
        assert logprobs.isnan().tolist() == [False, False, True, False]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"min_p": 2.0},
        {"batch": 0},
        {"max_step_tokens": 0},
        {"delimiter": ""},
        {"num_blocks": 0},
    ],
    ids=str,
)
def test_options_that_cannot_work_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        EngineOptions(**options)
