"""Processes that are killed in the middle of a search, and the searches that go on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from frtool.config import SearchConfig
from frtool.models.load import LoadedModel, load_model
from frtool.resume import Unfinished, read_trace
from frtool.search.events import Event, Resumed, Tick, to_record
from frtool.session import Session
from frtool.trace import TraceReader, TraceWriter

PROMPT = "Make 24 from 4, 5, 6, 10"
_CLOCKS_AND_CACHE = (
    "seconds", "kv_peak_blocks", "kv_peak_bytes", "kv_unshared_peak_bytes", "recomputed_tokens", "reused_tokens",
    "poll", "judge_tokens",
)  # fmt: skip
ALGORITHMS = ("beam", "mcts", "best-of-n", "dvts", "gumbel")

# Real processes


def kill_somewhere(path: Path, algorithm: str, size: int) -> None:
    """Start a search and kill it as soon as its trace is longer than `size` bytes."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    options = ["-o", "width=4", "-o", "keep=2"] if algorithm == "beam" else []
    command = [sys.executable, "-m", "frtool", "search", "--algorithm", algorithm, *options, "--steps", "16"]
    command += ["--device", "cpu", "-q", "--trace", str(path), PROMPT]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        end = time.monotonic() + 120
        while (not path.exists() or path.stat().st_size <= size) and process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.0005)
        assert process.returncode in (None, 0, 3), "it failed by itself"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def written(path: Path, session: Session, keep: int | None = None, **run: Any) -> list[dict[str, Any]]:
    """Run a session into a trace; what the trace then says of the tree."""
    with TraceWriter(path, keep=keep) as writer:
        for event in session.run(**run):
            writer.write(event)
    return lasting(TraceReader(path))


def lasting(events: Iterable[Event]) -> list[dict[str, Any]]:
    """What two runs of one search have in common: everything but clocks and the state of the cache."""
    records = [to_record(event) for event in events if not isinstance(event, Tick | Resumed)]
    return [{key: value for key, value in r.items() if key not in _CLOCKS_AND_CACHE} for r in records]


def check_kills(path: Path, loaded: LoadedModel, algorithm: str, kills: int, seed: int) -> None:
    options = {"width": 4, "keep": 2} if algorithm == "beam" else {}
    config = SearchConfig(PROMPT, algorithm=algorithm, algorithm_options=options, steps=16, device="cpu").resolved()
    expected = written(path, Session.open(config, loaded=loaded))
    size = path.stat().st_size
    draw = random.Random(seed)
    for _ in range(kills):
        path.unlink()
        kill_somewhere(path, algorithm, draw.randrange(200, size * 3 // 4))
        found = read_trace(path)
        if isinstance(found, Unfinished):
            assert written(path, Session.open(config, loaded=loaded), found.keep, record=found.record) == expected
        else:
            assert lasting(TraceReader(path)) == expected


@pytest.fixture(scope="module")
def embedded() -> LoadedModel:
    return load_model("embedded", device="cpu")


@pytest.mark.parametrize("algorithm", ["beam", "mcts"])
def test_a_killed_process_goes_on_to_the_same_tree(embedded, tmp_path, algorithm):
    check_kills(tmp_path / "run.jsonl", embedded, algorithm, 1, seed=3)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_ten_kills_of_each_algorithm(embedded, tmp_path, algorithm):
    check_kills(tmp_path / "run.jsonl", embedded, algorithm, 10, seed=4)
