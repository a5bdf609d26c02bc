"""The kernels of a captured pass around the attention, in Triton's interpreter and on a GPU.

Triton decides as it is imported whether to interpret, so without a GPU the file runs itself in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from frtool.engine.options import EngineOptions
from frtool.engine.sampling import Sampler
from frtool.kernels.allocator import PhysicalKVAllocator

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
runs_triton = pytest.mark.skipif(not INTERPRETED and DEVICE == "cpu", reason="runs in a process of its own")


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
def test_the_kernels_in_the_interpreter() -> None:
    file = Path(__file__)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)],
        cwd=file.parents[3],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert " passed" in result.stdout


def read(logits: torch.Tensor, uniforms: torch.Tensor, temperature: float, **tokens: list[int]) -> Any:
    from frtool.kernels.readout_kernel import read_rows

    marks = {name: torch.tensor(tokens.get(name, []), dtype=torch.long, device=DEVICE) for name in MARKS}
    values = torch.full((6, len(logits)), torch.nan, device=DEVICE)
    drawn = torch.full((len(logits),), -1, device=DEVICE)
    read_rows(logits, uniforms, temperature, *(marks[name] for name in MARKS), values, drawn)
    return values, drawn


MARKS = ("suppressed", "ends", "labels")


@runs_triton
@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
@pytest.mark.parametrize("vocab", [61, 2048, 5001])
def test_rows_are_read_as_the_sampler_reads_them(vocab: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(vocab)
    logits = (3 * torch.randn(9, vocab, generator=generator)).to(DEVICE)
    uniforms = torch.rand(9, generator=generator).clamp(1e-4, 1 - 1e-4).to(DEVICE)
    uniforms[3], uniforms[5] = -1.0, -2.0 - 37
    values, drawn = read(logits, uniforms, temperature, suppressed=[3, 5, 7], ends=[1, 2], labels=[5, 7])
    sampler = Sampler(EngineOptions(temperature=temperature), torch.device(DEVICE), suppressed=[3, 5, 7])
    tokens, logprobs, intervals = sampler.sample(logits, uniforms)
    assert drawn.tolist() == tokens.tolist() == values[0].long().tolist()
    assert torch.allclose(values[1], logprobs, atol=3e-6)
    assert torch.allclose(values[2], torch.softmax(logits, -1)[:, [1, 2]].sum(-1), atol=1e-6)
    assert torch.allclose(values[3], torch.softmax(logits[:, [5, 7]], -1)[:, 0], atol=1e-6)
    assert torch.allclose(values[4:].T, intervals, atol=1e-6)
    if temperature:
        assert drawn[5] == 37


@runs_triton
def test_frequencies_are_the_probabilities() -> None:
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().repeat(1000, 1).to(DEVICE)
    uniforms = ((torch.arange(1000) + 0.5) / 1000).to(DEVICE)
    _, drawn = read(logits, uniforms, 1.0)
    assert torch.bincount(drawn.cpu(), minlength=4).tolist() == [100, 200, 300, 400]


@runs_triton
def test_the_ends_of_the_interval_draw_tokens_that_can_be_drawn() -> None:
    logits = torch.full((2, 3000), float("-inf"), device=DEVICE)
    logits[:, [5, 2500]] = 0.0
    _, drawn = read(logits, torch.tensor([2**-24, 1 - 2**-24], device=DEVICE), 1.0)
    assert drawn.tolist() == [5, 2500]


@runs_triton
def test_a_row_with_nan_says_so_and_leaves_the_others_alone() -> None:
    logits = torch.zeros(2, 61, device=DEVICE)
    logits[0, 4] = torch.nan
    values, drawn = read(logits, torch.tensor([0.5, 0.5], device=DEVICE), 1.0)
    assert values[1].isnan().tolist() == [True, False]
    assert 0 <= int(drawn[0]) < 61


@runs_triton
@pytest.mark.parametrize(("heads", "dim"), [(2, 16), (3, 20)])
def test_padding_tokens_are_not_stored(heads: int, dim: int) -> None:
    from frtool.kernels.write_kernel import write_tokens

    k, v = (torch.randn(1, heads, 5, dim, device=DEVICE)[0].transpose(0, 1) for _ in range(2))
    pools = [torch.zeros(12, heads, dim, dtype=torch.float16, device=DEVICE) for _ in range(2)]
    write_tokens(k, v, *pools, torch.tensor([7, 0, -1, 11, -1], device=DEVICE))
    for new, pool in zip((k, v), pools, strict=True):
        wanted = torch.zeros_like(pool)
        wanted[[7, 0, 11]] = new[[0, 1, 3]].half()
        assert torch.equal(pool, wanted)


@pytest.mark.skipif(not INTERPRETED, reason="runs in a process of its own")
def test_passes_in_fixed_buffers_follow_the_tree(
    loaded_model: Callable[..., Any], drive: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from frtool.engine import fixed_step
    from frtool.kernels.attention import plan_attention
    from frtool.kernels.write_kernel import write_tokens

    def write(pool: Any, layer: int, slots: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        write_tokens(k, v, pool._slot_view[0, layer], pool._slot_view[1, layer], slots)

    loaded = loaded_model(num_hidden_layers=1)
    grown = []
    for pipeline in (False, True):
        if pipeline:
            monkeypatch.setattr(PhysicalKVAllocator, "write", write)
            monkeypatch.setattr(fixed_step, "plan_attention", lambda *a: plan_attention(*a, backend="triton"))
        driver = drive(loaded, prompt="make 24 \n", delimiter="e", max_step_tokens=3, block_size=4, pipeline=pipeline)
        grown.append(driver.grow(width=3, depth=1))
    assert [step.text for step in grown[0].values()] == [grown[1][name].text for name in grown[0]]
    for name, step in grown[0].items():
        assert step.logprob == pytest.approx(grown[1][name].logprob, abs=1e-4)
