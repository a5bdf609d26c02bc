"""What others wrote harms nobody: texts, prompts, paths, expressions, long lines, and the network."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from frtool.cli.app import run as frtool
from frtool.errors import ModelError
from frtool.eval.record import Result
from frtool.models.resolve import resolve_model
from frtool.search.events import Backup, Ended, Event, NodeAdded, Pruned, Resumed, RunStarted, Selected, Tick
from frtool.tasks.arithmetic import ArithmeticTask
from frtool.tasks.general import ExpressionTask, GeneralTask
from frtool.tasks.puzzle import Puzzle, parse_puzzle
from frtool.trace import TraceWriter
from frtool.verify.arithmetic import ArithmeticVerifier, ExpressionError, evaluate
from frtool.verify.math import MathVerifier

HOSTILE = (
    "\x1b[2J\x1b]0;owned\x07\x1b]8;;http://evil\x1b\\link\x9b31m\u202eright to left\u2066[bold red]x[/] [link=http://evil]y[/]"
    "\x00\x08\r\nnext\u2028line\ufeff\U000e0041</script><script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
)
UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\U000e0000-\U000e0fff]"
)


def hostile_events() -> list[Event]:
    return [
        RunStarted(HOSTILE, {"algorithm": HOSTILE, "model": HOSTILE, "seed": 0}, {"name": HOSTILE, "device": HOSTILE}),
        Selected(["0.0", "0.1"]),
        Tick(0.1, 1, 1, 0, 2, 4, 1, 9, 1, 1, note=HOSTILE, growing={"0.0": HOSTILE}),
        NodeAdded("0.0", HOSTILE, 5, -1.0, 0.5, 0.5, "end", HOSTILE, False, finish=HOSTILE),
        NodeAdded("0.1", HOSTILE, 5, -1.0, 0.5, 0.5, duplicate_of="0.0"),
        Backup("0.0", 0.5),
        Pruned(["0.0"], HOSTILE),
        Resumed(0.1, 2, HOSTILE),
        Ended(f"failed: {HOSTILE}", "0.0", HOSTILE, 0.5, nodes=1, terminals=1),
    ]


@pytest.fixture
def hostile_trace(tmp_path: Path) -> str:
    path = tmp_path / "t.jsonl"
    with TraceWriter(path) as writer:
        for event in hostile_events():
            writer.write(event)
    return str(path)


COMMANDS = [
    ["replay"],
    ["resume"],
    ["replay", "--verify"],
    *(["show", "--format", form] for form in ("tree", "html", "md", "mermaid", "dot", "json", "svg")),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_model_text_never_reaches_the_terminal_raw(hostile_trace, capfd, command):
    frtool([*command, hostile_trace])
    out, err = capfd.readouterr()
    assert out or err
    for text in (out, err):
        assert not UNSAFE.search(text), UNSAFE.search(text)
        assert "Traceback" not in text
    if command[-1] in ("html", "svg"):
        assert "<script>alert" not in out
        assert "<img" not in out


def test_two_hostile_traces_are_compared_safely(hostile_trace, tmp_path, capfd):
    other = tmp_path / "other.jsonl"
    other.write_text(Path(hostile_trace).read_text().replace("owned", "other"))
    for options in ([], ["--json"]):
        frtool(["compare", hostile_trace, str(other), *options])
        out, err = capfd.readouterr()
        assert out
        assert not UNSAFE.search(out + err)


def test_hostile_results_are_reported_safely(tmp_path, capfd):
    folders = []
    for right in (True, False):
        folder = tmp_path / str(right)
        folder.mkdir()
        result = Result(HOSTILE, HOSTILE, 4, HOSTILE, 0, right, right, HOSTILE, 0.5, HOSTILE, 4, 4, 9, 9, 9, 0.1, 0.1)
        (folder / "results.jsonl").write_text(json.dumps(asdict(result)) + "\n")
        folders.append(str(folder))
    frtool(["compare", *folders])
    out, err = capfd.readouterr()
    assert out or err
    assert not UNSAFE.search(out + err)


@pytest.mark.parametrize(
    "prompt", ["--trace=proof", "-h", "--help me", "-o", "-", "--", "--model=/etc/passwd 4 5 6 10"]
)
def test_a_prompt_that_looks_like_an_option_is_a_prompt_after_two_dashes(
    prompt, fake_session, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    with open(os.devnull) as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        status = frtool(["search", "-q", "--", prompt])
    err = capsys.readouterr().err
    assert status in (0, 2)
    assert (status == 2) == (prompt == "-"), err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "spec",
    ["a/b/../../../etc/x.gguf", "a/b/./../x.gguf", "a/b/c/../../../d.gguf", "../../nowhere", "a/../b", "a/b/..gguf/.."],
)
def test_a_hub_name_stays_in_its_repository(spec):
    with pytest.raises(ModelError):
        resolve_model(spec)


@pytest.mark.parametrize(
    "name", ["../other/w.safetensors", "/etc/passwd", "sub/w.safetensors", "..", ".", "\0", "a" * 5000]
)
def test_an_index_names_no_file_elsewhere(name, tmp_path):
    from frtool.models.checkpoint import summarize_weights

    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "w.safetensors").write_bytes(b"")
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(ModelError):
        summarize_weights(model)


PUZZLE = Puzzle((4, 5, 6, 10), 24)
COSTLY = ["9**9**9", "9" * 10**6, "(" * 10**7, "1/" * 10**6, "((((" + "9**9" * 10**6, "\\boxed{" * 10**6, "-" * 10**7]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", COSTLY, ids=lambda text: text[:6])
def test_expressions_that_would_cost_much_cost_nothing(text):
    with pytest.raises(ExpressionError):
        evaluate(text)
    assert not ArithmeticVerifier(PUZZLE).verify(text)
    assert parse_puzzle(text) is None
    assert ArithmeticTask(PUZZLE).answer(text) is None
    assert ArithmeticTask(PUZZLE).state(text) is None
    assert ExpressionTask(PUZZLE).answer(text) is None
    answer = GeneralTask().answer(text)
    assert answer is None or len(answer) <= 200_000


@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", ["9^{9^{9^{9}}}", "9**9**9**9", "(" * 5000, "\\frac{1}{" * 400])
def test_mathematics_that_would_cost_much_is_cut_short(text):
    pytest.importorskip("math_verify")
    assert MathVerifier("42").verify(text) is False


def sparse(path: Path, beginning: bytes) -> str:
    """A file of 100 MB whose only line is as long; it takes no room."""
    path.write_bytes(beginning)
    os.truncate(path, 100_000_000)
    return str(path)


RUN = b'{"kind": "run", "prompt": "x", "config": {}, "version": 2}\n'


@pytest.mark.parametrize(
    "beginning", [b'{"kind": "run", "prompt": "', RUN + b'{"kind": "node", "text": "'], ids=["first", "later"]
)
@pytest.mark.parametrize("command", [["show"], ["resume"], ["replay"], ["replay", "--verify"]], ids=" ".join)
def test_a_trace_with_a_line_of_100_mb_is_refused(tmp_path, capsys, command, beginning):
    path = sparse(tmp_path / "t.jsonl", beginning)
    assert frtool([*command, path]) == 1
    err = capsys.readouterr().err
    assert "longer than 16,777,216 bytes" in err
    assert len(err) < 1000


def test_lines_of_100_mb_are_refused_wherever_jsonl_is_read(tmp_path, capsys, fake_session):
    path = sparse(tmp_path / "t.jsonl", b'{"prompt": "')
    for command in (["compare", path, path], ["eval", path]):
        assert frtool(command) in (1, 2)
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert len(err) < 1000


NO_NETWORK = """
import socket, sys
def refuse(*arguments, **options):
    print("NETWORK", arguments, file=sys.stderr)
    raise OSError("no network")
class Closed(socket.socket):
    connect = connect_ex = sendto = refuse
socket.socket = Closed
socket.create_connection = socket.getaddrinfo = refuse
from frtool.cli import main
main()
"""


def without_network(*argv: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    environment: dict[str, Any] = os.environ | {"HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", NO_NETWORK, *argv]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200, check=False)


def test_a_search_of_the_embedded_model_knows_no_network(tmp_path):
    done = without_network(
        "search", "--steps", "2", "-q", "--device", "cpu", "Make 24 from 4, 5, 6, 10", tmp_path=tmp_path
    )
    assert done.returncode in (0, 3), done.stderr
    assert "NETWORK" not in done.stderr


def test_offline_forbids_the_network_even_for_a_hub_name(tmp_path):
    done = without_network("search", "--offline", "-q", "--model", "nobody/nothing", "hello", tmp_path=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "NETWORK" not in done.stderr
