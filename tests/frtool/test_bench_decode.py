"""`frtool bench decode`, on a model of no size."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from rich.console import Console

from frtool.bench import decode, decode_models
from frtool.bench.decode import DecodeReport, run
from frtool.bench.decode_baselines import Skipped, llama_cpp
from frtool.bench.decode_models import parameter_count, random_model
from frtool.bench.decode_report import decode_table, draw_chart
from frtool.engine import Forest
from frtool.models.load import LoadedModel

TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    decode_models.SHAPES["tiny"] = TINY
    try:
        loaded = random_model("tiny", torch.device("cpu"), torch.float32)
        assert loaded.parameters == parameter_count("tiny")
        return loaded
    finally:
        del decode_models.SHAPES["tiny"]


@pytest.fixture(scope="module")
def report(loaded: LoadedModel) -> DecodeReport:
    return run(loaded, [1, 5], prefix=40, suffix=6, steps=4, baselines=("hf", "llamacpp"))


def test_every_step_has_a_time_and_a_roofline(report: DecodeReport) -> None:
    assert [row.batch for row in report.rows] == [1, 5]
    for row in report.rows:
        assert row.step_ms > row.host_ms >= 0
        assert row.tokens_per_second == pytest.approx(1e3 * row.batch / row.step_ms)
        assert row.ratio == row.step_ms / row.roofline_ms
    token = 2 * 2 * 2 * 8 * 4
    weights = 4 * (report.settings["parameters"] - 64 * 32)  # the input embedding is not read
    for row in report.rows:
        read = weights + (40 + row.batch * 6) * token
        assert row.roofline_ms == pytest.approx(1e3 * read / report.bandwidth)


@pytest.mark.parametrize("prefix", [40, 43])
def test_the_pool_holds_what_the_run_needs_and_one_block_more(
    loaded: LoadedModel, prefix: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown: list[Forest] = []

    class Noted(Forest):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            grown.append(self)

        def evict(self, blocks: int) -> bool:
            raise AssertionError(f"{blocks} blocks are missing")

    monkeypatch.setattr(decode, "Forest", Noted)
    run(loaded, [1, 5], prefix=prefix, suffix=6, steps=4)
    for forest in grown:
        stats = forest.allocator.stats()
        assert stats.peak_blocks == stats.blocks_total - 1


def test_hugging_face_stands_beside_it_and_what_cannot_run_says_why(report: DecodeReport) -> None:
    assert all(row.peers_ms["hf"] for row in report.rows)
    assert all(row.peers_ms["llamacpp"] is None for row in report.rows)
    assert [note for note in report.notes if note.startswith("llamacpp: ")]


FAKE_LLAMA_CPP = """#!/bin/sh
echo "$@" >> "$0.calls"
case "$*" in
  *-kvu*) echo '{shared}' ;;
  *) echo '{apart}' ;;
esac
exit {status}
"""


@pytest.fixture
def llama_cpp_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A program in llama.cpp's place, and the file that its calls are written to."""

    def say(shared: str, apart: str, status: int = 0) -> Path:
        program = tmp_path / "llama-batched-bench"
        program.write_text(FAKE_LLAMA_CPP.format(shared=shared, apart=apart, status=status))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        return tmp_path / "llama-batched-bench.calls"

    return say


def gguf_model() -> LoadedModel:
    return cast(LoadedModel, SimpleNamespace(source="some.gguf"))


def test_llama_cpp_counts_with_the_faster_of_its_caches(llama_cpp_says: Callable[..., Path]) -> None:
    calls = llama_cpp_says('{"t_tg": 1.5}', '{"t_tg": 3.0}')
    assert llama_cpp(gguf_model(), 32, 1024, 30, 8) == pytest.approx(1.5 / 60)
    shared, apart = calls.read_text().splitlines()
    assert shared.split()[-1] == str(1024 + 32 * 60 + 256)
    assert apart.split()[-1] == str(32 * 1280)  # 1,085 tokens, rounded as it rounds


def test_llama_cpp_may_lack_one_of_its_caches(llama_cpp_says: Callable[..., Path]) -> None:
    llama_cpp_says("error: invalid argument: -kvu", '{"t_tg": 3.0}')
    assert llama_cpp(gguf_model(), 1, 64, 3, 8) == pytest.approx(0.5)


def test_llama_cpp_that_fails_is_skipped_with_its_last_words(llama_cpp_says: Callable[..., Path]) -> None:
    llama_cpp_says("no room", "unable to load model", status=1)
    with pytest.raises(Skipped, match="status 1, unable to load model"):
        llama_cpp(gguf_model(), 1, 64, 3, 8)


def test_the_report_prints_and_draws(report: DecodeReport, tmp_path: Path) -> None:
    buffer = io.StringIO()
    Console(file=buffer, width=160).print(decode_table(report))
    assert "roofline" in buffer.getvalue()
    assert json.loads(json.dumps(report.to_dict()))["rows"][1]["batch"] == 5
    pytest.importorskip("matplotlib")
    assert [path.stat().st_size > 0 for path in draw_chart(report, tmp_path)] == [True, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "gpt-5"], "--shape `gpt-5` is unknown"),
        (["--shape", "embedded", "--model", "x"], "--model and --shape name two models"),
        (["--steps", "0"], "--steps is 0"),
        (["--batch-sizes", "1,x"], "no list of numbers"),
        (["--baseline", "vllm"], "--baseline `vllm` is unknown"),
        (["--prefix", "9999"], "are more than the"),
    ],
)
def test_a_call_that_cannot_work_is_one_line(arguments: list[str], message: str) -> None:
    command = [sys.executable, "-m", "frtool", "bench", "decode", "--device", "cpu", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("shape", ["llama-3.2-1b", "llama-3.1-8b", "smollm2-135m"])
def test_the_shapes_have_the_sizes_in_their_names(shape: str) -> None:
    published = {"llama-3.2-1b": 1_235_814_400, "llama-3.1-8b": 8_030_261_248, "smollm2-135m": 134_515_008}
    assert parameter_count(shape) == published[shape]
