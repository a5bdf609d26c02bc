"""`frtool search --input`: a line a problem, whatever goes wrong with some of them."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from frtool.cli.app import run
from frtool.cli.lines import MAX_LINE_BYTES, Line, LineSource
from frtool.cli.questions import QuestionReader
from frtool.errors import UsageError
from frtool.solving.question import Question
from frtool.trace import TraceReader

GOOD = ["Make 24 from 4, 5, 6, 10", "Use 3 7 25 50 to reach 372", "Make 24 from 1, 2, 3, 4"]
FAST = ["-a", "best-of-n", "--n", "4", "--device", "cpu", "--dtype", "float32"]


def many(capfd: pytest.CaptureFixture[str], *argv: str) -> tuple[int, list[str], str]:
    status = run(["search", *FAST, "--no-progress", *argv])
    out, err = capfd.readouterr()
    return status, out.splitlines(), err


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    lines = [
        GOOD[0],
        "",
        json.dumps({"prompt": GOOD[1], "id": "b", "level": 3}),
        '{"prompt": ',
        "What is the capital of France?",
        json.dumps({"prompt": GOOD[2], "id": "b"}),
        "Make 24 from " + "1" * MAX_LINE_BYTES,
        json.dumps({"prompt": GOOD[2], "id": 9, "answer": 24}),
    ]
    path = tmp_path / "problems.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_every_problem_gives_one_line_and_bad_ones_stop_nobody(
    problems: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    status, out, err = many(capfd, "--input", str(problems), "--json", "--trace", str(tmp_path / "traces"))
    assert status == 1
    records: dict[Any, Any] = {}
    for line in out:
        records.setdefault(json.loads(line)["id"], []).append(json.loads(line))
    assert set(records) == {1, "b", 4, 5, 6, 7, 9}
    assert all(len(found) == 1 for found in records.values())
    for name, said in {4: "JSON object", 5: "puzzles only", 6: "that of line 3", 7: "longer than"}.items():
        (record,) = records[name]
        assert (record["status"], set(record)) == (2, {"id", "status", "error", "hint"})
        assert said in record["error"]
        assert f"error: {name}: {record['error']}" in err
    for name, prompt in {1: GOOD[0], "b": GOOD[1], 9: GOOD[2]}.items():
        (record,) = records[name]
        assert record["status"] in (0, 3)
        events = list(TraceReader(record["trace"]))
        assert events[0].prompt == prompt
        assert events[-1].answer == record["answer"]
    assert len(list((tmp_path / "traces").iterdir())) == 3
    assert "7 problems" in err


def test_each_answer_is_that_of_a_lone_search(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.txt"
    path.write_text("\r\n".join(GOOD))
    status, out, _ = many(capfd, "--input", str(path))
    assert status in (0, 3)
    together = dict(line.split("\t") for line in out)
    assert set(together) == {"1", "2", "3"}
    for place, prompt in enumerate(GOOD, 1):
        _, alone, _ = many(capfd, prompt)
        assert together[str(place)] == "".join(alone)


def test_results_come_while_the_input_is_still_open(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "frtool", "search", "--input", "-", "-q", *FAST]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    guard = threading.Timer(120, process.kill)
    guard.start()
    assert process.stdin is not None
    assert process.stdout is not None
    for place, prompt in enumerate(GOOD, 1):
        process.stdin.write(prompt + "\n")
        process.stdin.flush()
        assert process.stdout.readline().startswith(f"{place}\t")
    # Ctrl-C while it waits for the next problem: what is done stays done.
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert process.stdout.read() == ""
    guard.cancel()


def test_a_closed_stdout_ends_it_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("\n".join(GOOD * 3))
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "frtool", "search", "--input", str(path), "-q", *FAST],
        stdout=write, stderr=subprocess.PIPE, text=True, timeout=120, check=False,
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--input", "none.txt"], "none.txt: No such file"),
        (["--input", "."], "Is a directory"),
        (["--input", "empty.txt"], "holds no problems"),
        (["--input", "blank.txt"], "holds no problems"),
        (["--input", "binary.bin"], "holds no text"),
        (["Make 24", "--input", "good.txt"], "a prompt and --input"),
        (["--input", "good.txt", "--picture", "t.svg"], "--picture draws one tree"),
        (["--input", "good.txt", "--trace", "good.txt"], "is a file"),
        (["--input", "good.txt", "--trace", "no/where"], "no such folder"),
        (["--input", "good.txt", "-a", "greedy"], "does not use the option"),
        (["--input", "good.txt", "--expected", "3", "--verify", "none"], "no use with --verify none"),
        (["--input", "good.txt", "--kv-bytes", "lots"], "--kv-bytes `lots` is no size"),
    ],
)
def test_what_concerns_all_problems_is_said_once(
    argv: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, data in {
        "empty.txt": b"",
        "blank.txt": b"\n \n",
        "binary.bin": b"a\0b\n",
        "good.txt": b"Make 24\n",
    }.items():
        Path(name).write_bytes(data)
    before = sorted(tmp_path.iterdir())
    status, out, err = many(capfd, *argv)
    assert (status, out) == (2, [])
    assert said in err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is none"),
        ("{]}", "is none"),
        ('{"a":' * 100_000, "is none"),
        ('{"prompt": 3}', 'no text as "prompt"'),
        ('{"question": "x"}', 'no text as "prompt"'),
        ('{"prompt": "x", "id": 1.5}', '"id" is neither'),
        ('{"prompt": "x", "id": true}', '"id" is neither'),
        ('{"prompt": "x", "id": "\\ud800"}', '"id" is neither'),
        ('{"prompt": "x", "answer": []}', '"answer" is neither'),
        ('{"prompt": "\\ud800"}', "no character"),
        ('{"prompt": "a\\u0000b"}', "no character"),
        ('{"prompt": "x", "answer": "\\udfff"}', "no character"),
    ],
)
def test_lines_that_are_no_problem(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        QuestionReader().read(Line(1, text))


def test_lines_that_are_problems() -> None:
    reader = QuestionReader()
    assert reader.read(Line(3, " [1, 2] ")) == Question("[1, 2]", 3)
    assert reader.read(Line(4, '{"prompt": "x", "answer": 1.5}')) == Question("x", 4, "1.5")
    assert reader.read(Line(5, '{"prompt": "x", "id": "é"}')) == Question("x", "é")


@pytest.mark.parametrize("chunk", [1, 2, 7, 1000])
def test_lines_are_cut_alike_however_they_come(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frtool.cli.lines._CHUNK", chunk)
    monkeypatch.setattr("frtool.cli.lines.MAX_LINE_BYTES", 12)
    path = tmp_path / "lines"
    path.write_bytes("\ufeffone\r\n\n  \ntwo é\n".encode() + b"\xff\n" + b"x" * 13 + b"\n" + b"y" * 40 + b"\nlast")
    with LineSource(path) as source:
        lines = []
        while not source.over:
            line = source.take(wait=True)
            if line is not None:
                lines.append((line.number, line.text or line.error))
    long = "the line is longer than 12 bytes"
    assert lines == [(1, "one"), (4, "two é"), (5, "the line is not valid UTF-8"), (6, long), (7, long), (8, "last")]


def test_a_stand_in_for_stdin_is_read_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\nb")))
    with LineSource(Path("-")) as source:
        assert [source.take(wait=True), source.take(wait=False)] == [Line(1, "a"), Line(2, "b")]
        assert source.take(wait=True) is None
        assert source.over
