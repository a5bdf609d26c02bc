"""Evaluations over the engine, from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from frtool.cli.app import run
from frtool.eval.control import RANDOM_POLICY
from frtool.models.load import LoadedModel

COMMON = ["--model", "tiny", "--delimiter", "e", "--max-step-tokens", "12", "--max-depth", "2", "--path-steps", "2"]


@pytest.fixture
def problems(tmp_path: Path, tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two prompts; the tiny model is loaded whatever the name."""
    monkeypatch.setattr("frtool.models.load.load_model", lambda *args, **options: tiny)
    file = tmp_path / "mine.jsonl"
    file.write_text('{"prompt": "what is 6 times 7", "answer": "42"}\n{"prompt": "say abc", "answer": "abc"}\n')
    return file


def evaluate(capfd: Any, *argv: str) -> tuple[int, Any, str]:
    """Exit status, the JSON object on stdout and what stderr got."""
    status = run(["eval", *argv, "--json"])
    captured = capfd.readouterr()
    return status, json.loads(captured.out) if captured.out else None, captured.err


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def stable(results: list[dict[str, Any]]) -> list[Any]:
    """Results without what the clock and the pool say, in an order of their own."""
    timed = ("seconds", "latency", "kv_peak_bytes", "kv_unshared_peak_bytes")
    return sorted(str({key: value for key, value in row.items() if key not in timed}) for row in results)


def test_an_evaluation_writes_every_result_and_goes_on_where_it_stopped(
    capfd: Any, problems: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "out"
    argv = [str(problems), *COMMON, "--budgets", "8", "--seeds", "0,1", "--out", str(folder)]
    status, record, _ = evaluate(capfd, *argv, "--algorithms", "greedy,best-of-n")
    assert status == 0
    rows = {(row["algorithm"], row["budget"]): row for row in record["rows"]}
    assert set(rows) == {("greedy", None), ("best-of-n", 8)}
    assert rows["best-of-n", 8]["n"] == 4
    assert rows["greedy", None]["n"] == 2
    assert rows["best-of-n", 8]["correct"] == 0
    assert 4 <= rows["best-of-n", 8]["steps"] <= 8
    assert rows["best-of-n", 8]["kv_saved"] > 1
    results = lines(folder)
    assert len(results) == 6
    assert sum(row["policy_tokens"] for row in results) > 0
    assert json.loads((folder / "summary.json").read_text()) == record
    assert (folder / "accuracy.png").stat().st_size > 1000
    assert "<svg" in (folder / "accuracy.svg").read_text()

    # A killed run: whole lines stay, half a line goes, and what lacks is done again.
    text = (folder / "results.jsonl").read_text().splitlines(keepends=True)
    (folder / "results.jsonl").write_text("".join(text[:3]) + text[3][:20])
    status, _, _ = evaluate(capfd, *argv, "--algorithms", "greedy,best-of-n", "--resume")
    assert status == 0
    assert [*lines(folder)[:3]] == results[:3]
    assert stable(lines(folder)) == stable(results)

    status, record, err = evaluate(capfd, *argv, "--algorithms", "greedy,best-of-n")
    assert (status, record) == (2, None)
    assert "holds results already" in err
    status, _, err = evaluate(capfd, *argv, "--algorithms", "best-of-n", "--resume", "--temperature", "0.5")
    assert status == 2
    assert "other settings" in err


def test_the_batch_changes_no_result(capfd: Any, problems: Path, tmp_path: Path) -> None:
    found = []
    for batch in ("2", "32"):
        folder = tmp_path / batch
        argv = [str(problems), *COMMON, "--budgets", "12", "--algorithms", "mcts,beam", "--no-plot", "--batch", batch]
        assert evaluate(capfd, *argv, "--out", str(folder))[0] == 0
        found.append(stable(lines(folder)))
    assert found[0] == found[1]


def test_the_table_names_the_control_and_pass_at_n(capfd: Any, problems: Path) -> None:
    status = run(["eval", "game24", "--limit", "5", "--algorithms", RANDOM_POLICY, "--budgets", "48,192"])
    out = capfd.readouterr().out
    assert status == 0
    assert "pass@N" in out
    assert "selected % [95 % CI]" in out
    assert "a verifier that never errs" in out
    assert len([line for line in out.splitlines() if RANDOM_POLICY in line]) == 3


def test_a_problem_that_the_model_cannot_take_counts_as_wrong(capfd: Any, problems: Path, tmp_path: Path) -> None:
    file = tmp_path / "long.jsonl"
    file.write_text('{"prompt": "' + "a" * 400 + '", "answer": "1"}\n{"prompt": "b", "answer": "1"}\n')
    status, record, _ = evaluate(capfd, str(file), *COMMON, "--algorithms", "beam", "--budgets", "8")
    assert status == 0
    assert (record["rows"][0]["n"], record["rows"][0]["failed"], record["rows"][0]["correct"]) == (2, 1, 0)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["game24", "--algorithms", "magic"], "unknown algorithm"),
        (["game24", "--budgets", "4,x"], "no list of whole numbers"),
        (["game24", "--budgets", "0"], "at least 1"),
        (["game24", "--budgets", ""], "--budgets is empty"),
        (["game24", "--seeds", "1,1"], "something twice"),
        (["game24", "-o", "keep=3"], "names no algorithm"),
        (["game24", "-o", "beam.colour=3"], "does not use the option"),
        (["game24", "-o", "dvts.width=3"], "not among --algorithms"),
        (["game24", "--control", "none"], "is unknown"),
        (["game24", "--resume"], "--out"),
        (["chess"], "no task `chess`"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_loads(capfd: Any, argv: list[str], said: str) -> None:
    status, record, err = evaluate(capfd, *argv)
    assert (status, record) == (2, None)
    assert said in err


def test_every_algorithm_stands_beside_best_of_n_at_equal_tokens(capfd: Any, problems: Path) -> None:
    argv = [str(problems), *COMMON, "--algorithms", "greedy,best-of-n,beam,dvts", "--budgets", "12"]
    argv += ["--baseline-budgets", "4,8,12,48", "--seeds", "0,1"]
    status, record, _ = evaluate(capfd, *argv)
    assert status == 0
    assert record["plan"]["baseline_budgets"] == [4, 8, 12, 48]
    assert [row["budget"] for row in record["rows"] if row["algorithm"] == "best-of-n"] == [4, 8, 12, 48]
    found = {entry["algorithm"]: entry for entry in record["equal_tokens"]}
    assert set(found) == {"greedy", "beam", "dvts"}
    beam = next(row for row in record["rows"] if row["algorithm"] == "beam")
    assert found["beam"]["tokens"] == beam["policy_tokens"] + beam["scorer_tokens"]
    assert found["beam"]["best_of_n"] == found["beam"]["difference"] == 0  # the tiny model is never right
    assert found["beam"]["difference_low"] < 0 < found["beam"]["difference_high"]
    assert found["greedy"]["verdict"] == "outside"
    assert run(["eval", *argv]) == 0
    out = capfd.readouterr().out
    assert "at equal tokens" in out
    assert len([line for line in out.splitlines() if line.lstrip().startswith(("beam", "dvts"))]) == 4


def test_one_budget_of_best_of_n_is_no_curve(capfd: Any, problems: Path) -> None:
    status, record, _ = evaluate(
        capfd, str(problems), *COMMON, "--algorithms", "greedy,best-of-n", "--budgets", "8", "--no-plot"
    )
    assert (status, record["equal_tokens"]) == (0, [])


def test_a_command_judges_every_cell(capfd: Any, problems: Path) -> None:
    argv = [str(problems), *COMMON, "--algorithms", "best-of-n", "--budgets", "4,8", "--verify-command", "true"]
    status, record, _ = evaluate(capfd, *argv, "--no-plot")
    assert status == 0
    assert [row["correct"] for row in record["rows"]] == [2, 2]
