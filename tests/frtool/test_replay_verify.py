"""Running a recorded search again: the same tree is recognised, the first difference is named, no file is trusted."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from frtool.cli.app import run

PUZZLE = "Make 24 from 4, 5, 6, 10"

pytestmark = pytest.mark.usefixtures("fake_session")


def frtool(capfd: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    status = run([str(a) for a in argv])
    captured = capfd.readouterr()
    return status, captured.out, captured.err


@pytest.fixture
def trace(tmp_path, capfd, monkeypatch) -> Path:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    path = tmp_path / "run.jsonl"
    frtool(capfd, "search", PUZZLE, "--nodes", "40", "--seed", "3", "--trace", path)
    return path


def rewrite(trace: Path, change: Callable[[list[dict]], object]) -> None:
    """Let `change` edit the trace's records in place."""
    records = [json.loads(line) for line in trace.read_text().splitlines()]
    change(records)
    trace.write_text("".join(json.dumps(record) + "\n" for record in records))


def nodes(records: list[dict]) -> list[dict]:
    return [record for record in records if record["kind"] == "node"]


def test_same_configuration_grows_the_same_tree(trace, capfd):
    status, out, err = frtool(capfd, "replay", "--verify", trace)
    assert status == 0
    assert out.startswith("the trees are the same: ")
    assert out.endswith("to the last bit\n")
    assert "Traceback" not in err
    record = json.loads(frtool(capfd, "replay", "--verify", "--json", trace)[1])
    assert (record["same"], record["whole"], record["first_difference"]) == (True, True, None)


@pytest.mark.parametrize(
    ("name", "value"), [("text", "9 * 9 = 81"), ("tokens", 77), ("logprob", -55.0), ("answer", "8")]
)
def test_first_difference_is_named_with_both_values(trace, capfd, name, value):
    node = {}

    def change(records):
        node.update(nodes(records)[10])
        nodes(records)[10][name] = value
        nodes(records)[20]["text"] = "later"

    rewrite(trace, change)
    status, out, _ = frtool(capfd, "replay", "--verify", trace)
    assert status == 1
    assert f"the first that differs is {node['id']}, in its {name}" in out
    assert f"recorded: {value}" in out
    assert f"again: {str(node[name]).strip()}" in out


def test_missing_and_added_steps_are_differences(trace, capfd):
    rewrite(trace, lambda records: records.remove(nodes(records)[5]))
    status, out, _ = frtool(capfd, "replay", "--verify", trace)
    assert status == 1
    assert "in again alone" in out


def test_other_end_of_the_same_tree_is_a_difference(trace, capfd):
    rewrite(trace, lambda records: records[-1].update(answer="something else"))
    status, out, _ = frtool(capfd, "replay", "--verify", trace)
    assert status == 1
    assert "not the answer at the end" in out
    assert "recorded: something else" in out


@pytest.mark.parametrize("reason", ["interrupted", "seconds", "failed: no power"])
def test_search_that_stopped_by_the_clock_is_compared_up_to_there(trace, capfd, reason):
    def cut(records):
        del records[len(records) // 2 : -1]
        records[-1]["reason"] = reason
        records[0]["config"] |= {"seconds": 0.001, "nodes": None}

    rewrite(trace, cut)
    status, out, _ = frtool(capfd, "replay", "--verify", trace)
    assert status == 0, out
    assert "compared up to there" in out
    rewrite(trace, lambda records: nodes(records)[-1].update(text="other"))
    assert frtool(capfd, "replay", "--verify", trace)[0] == 1


def test_trace_that_breaks_off_is_compared_as_far_as_it_goes(trace, capfd):
    trace.write_bytes(trace.read_bytes()[: trace.stat().st_size // 2])
    status, out, _ = frtool(capfd, "replay", "--verify", trace)
    assert status == 0
    assert "unfinished" in out


def test_other_surroundings_are_told(trace, capfd):
    rewrite(trace, lambda records: records[0]["model"].update(device="Some GPU\x1b[2J"))
    status, out, _ = frtool(capfd, "replay", "--verify", trace)
    assert status == 0
    assert "device: recorded with Some GPU\\x1b[2J, now cpu" in out


@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [
        ({"trust_remote_code": True}, 2, "Python code that its model brings"),
        ({"setting_of_tomorrow": 1}, 1, "does not know: setting_of_tomorrow"),
        ({"tokens": "many"}, 1, "does not work"),
        ({"temperature": []}, 1, "does not work"),
        ({"temperature": -3}, 2, "--temperature"),
        ({"algorithm": "from-tomorrow"}, 2, "from-tomorrow"),
        ({"delimiter": 5, "seed": None}, 1, "does not work"),
    ],
)
def test_configuration_of_the_file_is_checked_before_anything_runs(trace, capfd, changes, status, said):
    rewrite(trace, lambda records: records[0]["config"].update(changes))
    found, out, err = frtool(capfd, "replay", "--verify", trace)
    assert (found, out) == (status, "")
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert said in err
    assert "unexpected" not in err


def test_search_that_fails_when_run_again_is_an_error(trace, capfd):
    rewrite(trace, lambda records: records[0].update(prompt=PUZZLE + " refused"))
    status, out, err = frtool(capfd, "replay", "--verify", trace)
    assert (status, out) == (1, "")
    assert "the model is no model" in err


@pytest.mark.parametrize(
    "argv", ["--verify --step", "--verify --speed 2", "--device cpu", "--json", "--trust-remote-code"]
)
def test_options_that_do_not_go_together_are_a_usage_error(trace, capfd, argv):
    status, out, err = frtool(capfd, "replay", trace, *argv.split())
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
