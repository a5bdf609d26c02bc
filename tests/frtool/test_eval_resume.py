"""Evaluations that are killed, and go on problem by problem."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from frtool.cli.app import run as frtool

CALL = ["eval", "game24", "--algorithms", "greedy", "--budgets", "3", "--no-plot", "-q", "--device", "cpu"]
_CLOCKS = ("latency", "seconds", "kv_peak_bytes", "kv_unshared_peak_bytes")


def results(folder: Path) -> list[dict[str, Any]]:
    """All results, in a fixed order, without clocks and the peak of the pool, which their neighbours share."""
    records = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    kept = [{key: value for key, value in record.items() if key not in _CLOCKS} for record in records]
    return sorted(kept, key=lambda r: (r["algorithm"], int(r["id"]), r["seed"]))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert frtool([*CALL, "--limit", "3", "--out", str(folder)]) == 0
    return folder


def test_results_cut_at_any_byte_are_completed(whole, tmp_path, capsys):
    data = (whole / "results.jsonl").read_bytes()
    settings = (whole / "settings.json").read_bytes()
    draw = random.Random(0)
    for turn in range(3):
        folder = tmp_path / str(turn)
        folder.mkdir()
        cut = draw.randrange(len(data))
        (folder / "results.jsonl").write_bytes(data[:cut])
        (folder / "settings.json").write_bytes(settings)
        assert frtool([*CALL, "--limit", "3", "--out", str(folder), "--resume"]) == 0
        assert results(folder) == results(whole), f"cut at byte {cut}"
        assert json.loads((folder / "summary.json").read_text())["rows"]


def test_what_is_done_is_not_done_again(whole, capsys):
    data = (whole / "results.jsonl").read_bytes()
    assert frtool([*CALL, "--limit", "3", "--out", str(whole), "--resume"]) == 0
    assert (whole / "results.jsonl").read_bytes() == data


@pytest.mark.timeout(200)
def test_a_killed_evaluation_goes_on(whole, tmp_path):
    folder = tmp_path / "out"
    command = [sys.executable, "-m", "frtool", *CALL, "--limit", "3", "--out", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    file = folder / "results.jsonl"
    end = time.monotonic() + 120
    while not (file.exists() and file.stat().st_size) and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert frtool([*CALL, "--limit", "3", "--out", str(folder), "--resume"]) == 0
    assert results(folder) == results(whole)
