"""Two evaluations beside each other: paired by problem, with an exact test, and bad files refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from frtool.cli.app import run
from frtool.replay.evaluations import pair, read_results, sign_test
from frtool.search.events import RunStarted
from frtool.trace import TraceWriter


def folder(path: Path, right: dict[str, bool], algorithm: str = "mcts", budget: int | None = 48) -> Path:
    path.mkdir()
    cell = {"task": "game24", "algorithm": algorithm, "budget": budget, "seed": 0}
    records = [cell | {"id": name, "correct": correct, "answer": "\x1b[2J"} for name, correct in right.items()]
    (path / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_sign_test_is_the_exact_binomial_one():
    assert sign_test(0, 0) == 1
    assert sign_test(5, 5) == 1
    assert sign_test(0, 5) == pytest.approx(2 / 32)
    assert sign_test(8, 2) == sign_test(2, 8) == pytest.approx(2 * (1 + 10 + 45) / 1024)


def test_problems_are_paired_and_only_common_ones_count(tmp_path, capfd):
    a = folder(tmp_path / "a", {"1": True, "2": True, "3": False, "4": True})
    b = folder(tmp_path / "b", {"1": True, "2": False, "3": True, "5": True, "6": True})
    cell = next(pair(read_results(a / "results.jsonl"), read_results(b / "results.jsonl")))
    assert (cell.paired, cell.only_a, cell.only_b, cell.p_value) == (3, 1, 1, 1.0)
    assert cell.accuracy_a == cell.accuracy_b == pytest.approx(2 / 3)
    assert run(["compare", str(a), str(b / "results.jsonl")]) == 0
    out = capfd.readouterr().out
    assert "66.7 %" in out
    assert "\x1b" not in out


def test_cells_of_one_side_stand_alone(tmp_path, capfd):
    a = folder(tmp_path / "a", {"1": True})
    b = folder(tmp_path / "b", {"1": False}, "greedy", None)
    assert run(["compare", str(a), str(b), "--json"]) == 0
    cells = json.loads(capfd.readouterr().out)["cells"]
    assert [(c["algorithm"], c["paired"], c["accuracy_a"], c["accuracy_b"]) for c in cells] == [
        ("mcts", 0, 1.0, None),
        ("greedy", 0, None, 0.0),
    ]
    assert run(["compare", str(a), str(b)]) == 0


def test_cut_last_line_is_left_out_and_damage_is_named(tmp_path, capfd):
    a = folder(tmp_path / "a", {"1": True, "2": True})
    results = a / "results.jsonl"
    whole = results.read_text()
    results.write_text(whole[:-20])
    assert len(read_results(results)) == 1
    results.write_text(whole + "nonsense\n" + whole)
    assert run(["compare", str(a), str(a)]) == 1
    assert "line 3" in capfd.readouterr().err
    results.write_text(whole.replace("true", '"yes"'))
    assert run(["compare", str(a), str(a)]) == 1
    assert "`correct`" in capfd.readouterr().err


def test_a_trace_and_an_evaluation_or_an_empty_folder_are_refused(tmp_path, capfd):
    a = folder(tmp_path / "a", {"1": True})
    with TraceWriter(tmp_path / "t.jsonl") as writer:
        writer.write(RunStarted("x", {}))
    assert run(["compare", str(a), str(tmp_path / "t.jsonl")]) == 2
    assert "is an evaluation" in capfd.readouterr().err
    assert run(["compare", str(tmp_path), str(tmp_path)]) == 1
    err = capfd.readouterr().err
    assert err.startswith("error: ")
    assert len(err.splitlines()) <= 2
