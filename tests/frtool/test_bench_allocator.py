from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from frtool.bench.allocator import CYCLES_TARGET, run_allocator_benchmark
from frtool.cli.app import run


def test_the_benchmark_measures_the_asked_cycle_and_says_whether_it_reaches_the_target():
    threads = torch.get_num_threads()
    rows = run_allocator_benchmark(seconds=0.05, rounds=2)
    asked = rows[0]
    assert (asked.shared_blocks, asked.branches, asked.target) == (128, 1, CYCLES_TARGET)
    assert asked.reached == (asked.cycles_per_second >= 50_000)
    assert all(row.cycles_per_second > 0 for row in rows)
    assert torch.get_num_threads() == threads


def test_the_command_draws_its_rates_in_the_terminal_and_into_files(tmp_path, capfd):
    pytest.importorskip("matplotlib")
    assert run(["bench", "allocator", "--seconds", "0.01", "--terminal-plot", "--plot", str(tmp_path / "new")]) == 0
    out, err = capfd.readouterr()
    table, chart = out.split("\n\n")
    assert "50,000" in table
    assert "fork + append + free, 1,024 blocks" in chart
    assert chart.count("\n") == 1 + 4 + 1  # a title, the cases and the target
    written = [Path(line.removeprefix("wrote ")) for line in err.splitlines()]
    assert [path.name for path in written] == ["allocator.png", "allocator.svg"]
    assert all(path.stat().st_size > 0 for path in written)


def test_files_are_drawn_beside_json(tmp_path, capfd):
    pytest.importorskip("matplotlib")
    assert run(["bench", "allocator", "--seconds", "0.01", "--json", "--plot", str(tmp_path)]) == 0
    assert len(json.loads(capfd.readouterr().out)["rows"]) == 4
    assert {path.name for path in tmp_path.iterdir()} == {"allocator.png", "allocator.svg"}
