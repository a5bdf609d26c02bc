"""Every command answers every kind of bad input with one line on stderr, and leaves nothing behind."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from frtool.cli.app import app, run
from frtool.trace import TraceWriter

PUZZLE = "Make 24 from 4, 5, 6, 10"
LONG = "n" * 5000
UNDECODABLE = "x\udcff"

# Files that the cases name; `make_files` writes them.
FILES: dict[str, bytes] = {
    "empty.jsonl": b"",
    "binary.jsonl": bytes(range(256)),
    "text.jsonl": b"no trace at all\n",
    "list.jsonl": b"[1, 2]\n",
    "later.jsonl": b'{"kind": "run", "version": 99, "prompt": "x", "config": {}}\n',
    "middle.jsonl": b'{"kind": "tick"}\n',
    "wrong.jsonl": b'{"kind": "run", "version": 1, "prompt": 7, "config": {}}\n',
    "damaged.jsonl": b'{"kind": "run", "version": 1, "prompt": "x", "config": {}}\n{"kind": "nod\n{"kind": "tick"}\n',
    "deep.jsonl": b"[" * 100_000,
    "unknown.jsonl": b'{"kind": "run", "version": 1, "prompt": "x", "config": {"magic": 1}}\n',
    "remote.jsonl": b'{"kind": "run", "version": 1, "prompt": "x", "config": {"trust_remote_code": true}}\n',
    "command.jsonl": b'{"kind": "run", "version": 1, "prompt": "x", "config": {"verify_command": "true"}}\n',
    "items.jsonl": b'{"prompt": "1 + 1", "answer": "2"}\n',
    "noanswer.jsonl": b'{"prompt": "1 + 1"}\n',
    "broken.gguf": b"GGUF\x03\x00\x00\x00",
    "broken.toml": b"name = [",
    "magic.toml": b"magic = 3\n",
    "blank.txt": b" \n",
    "latin.txt": b"caf\xe9",
    "folder/config.json": b"{",
    "evaluation/results.jsonl": b"{}\n",
}

SEARCH: dict[str, list[str]] = {
    "no prompt": [],
    "blank prompt": [" \n"],
    "two prompts": ["Make", "24"],
    "undecodable prompt": [UNDECODABLE],
    "not for the embedded model": ["What is the capital of France?"],
    "unknown option": [PUZZLE, "--nonsense"],
    "option without its value": [PUZZLE, "--tokens"],
    "no number": [PUZZLE, "--tokens", "many"],
    "negative number": [PUZZLE, "--nodes", "-3"],
    "no finite number": [PUZZLE, "--seconds", "nan"],
    "seed too long": [PUZZLE, "--seed", "9" * 40],
    "number too long": [PUZZLE, "--steps", "9" * 5000],
    "unknown algorithm": [PUZZLE, "-a", "magic"],
    "option of another algorithm": [PUZZLE, "-a", "greedy", "--width", "4"],
    "option out of bounds": [PUZZLE, "-a", "mcts", "-o", "c_puct=-1"],
    "option without a sign": [PUZZLE, "-o", "c_puct"],
    "unknown scorer": [PUZZLE, "--scorer", "oracle"],
    "contradiction": [PUZZLE, "--steer", "--verify", "none"],
    "unknown dtype": [PUZZLE, "--dtype", "int3"],
    "unknown device": [PUZZLE, "--device", "abacus"],
    "no size": [PUZZLE, "--kv-memory", "lots"],
    "no size of host memory": [PUZZLE, "--swap-space", "-1"],
    "pool too small": [PUZZLE, "--kv-memory", "1"],
    "no such model": [PUZZLE, "--model", "./none"],
    "no model in the folder": [PUZZLE, "--model", "folder"],
    "damaged model": [PUZZLE, "--model", "broken.gguf"],
    "model with a NUL": [PUZZLE, "--model", "a\0b"],
    "model name too long": [PUZZLE, "--model", LONG],
    "no such reward model": [PUZZLE, "--reward-model", "./none", "--reward-preset", "none"],
    "damaged preset": [PUZZLE, "--reward-model", "./none", "--reward-preset", "broken.toml"],
    "no such verify command": [PUZZLE, "--verify-command", "/no/such/program"],
    "trace nowhere": [PUZZLE, "--trace", "none/t.jsonl"],
    "trace in a folder's place": [PUZZLE, "--trace", "folder"],
    "trace on stdout": [PUZZLE, "--trace", "-"],
    "picture of another kind": [PUZZLE, "--picture", "tree.png"],
    "picture nowhere": [PUZZLE, "--picture", "none/tree.svg"],
    "no such prompt file": ["--prompt-file", "none.txt"],
    "blank prompt file": ["--prompt-file", "blank.txt"],
    "undecodable prompt file": ["--prompt-file", "latin.txt"],
    "folder as prompt file": ["--prompt-file", "folder"],
    "prompt twice": [PUZZLE, "--prompt-file", "latin.txt"],
    "prompt and problems": [PUZZLE, "--input", "items.jsonl"],
    "prompt file and problems": ["--prompt-file", "blank.txt", "--input", "items.jsonl"],
    "no such problems": ["--input", "none.jsonl"],
    "no problems": ["--input", "empty.jsonl"],
    "problems that are no text": ["--input", "binary.jsonl"],
    "damaged settings": [PUZZLE, "--config", "broken.toml"],
    "settings that are not there": [PUZZLE, "--config", "none.toml"],
    "settings that are none": [PUZZLE, "--config", "magic.toml"],
}

EVAL: dict[str, list[str]] = {
    "no task": [],
    "unknown task": ["magic"],
    "unknown option": ["game24", "--nonsense"],
    "unknown field of a task": ["countdown:magic=1"],
    "field out of bounds": ["countdown:numbers=0"],
    "field without a value": ["countdown:numbers"],
    "no such file": ["none.jsonl"],
    "items without answers": ["noanswer.jsonl"],
    "file that is none": ["text.jsonl"],
    "empty file": ["empty.jsonl"],
    "unknown check": ["items.jsonl:check=magic"],
    "unknown algorithm": ["game24", "-a", "magic"],
    "no algorithm": ["game24", "-a", ","],
    "budget that is no number": ["game24", "--budgets", "many"],
    "budget of nothing": ["game24", "--budgets", "0"],
    "baseline that is no number": ["game24", "--baseline-budgets", "some"],
    "baseline without best-of-n": ["game24", "-a", "beam", "--baseline-budgets", "12"],
    "seeds that are no numbers": ["game24", "--seeds", "x"],
    "option without an algorithm": ["game24", "-o", "width=3"],
    "option of another algorithm": ["game24", "-a", "greedy", "-o", "greedy.width=3"],
    "unknown control": ["game24", "--control", "magic"],
    "negative limit": ["game24", "--limit", "-1"],
    "offset past the end": ["game24", "--offset", "100000"],
    "resume of nothing": ["game24", "--resume"],
    "results in a file's place": ["game24", "--out", "items.jsonl", "--no-plot"],
    "results over others": ["game24", "--out", "evaluation", "--no-plot"],
    "no such model": ["game24", "--limit", "1", "-a", "greedy", "--model", "./none"],
}

BENCH_ALLOCATOR: dict[str, list[str]] = {
    "negative time": ["--seconds", "-1"],
    "no time": ["--seconds", "0"],
    "time without end": ["--seconds", "inf"],
    "no number of seconds": ["--seconds", "nan"],
    "no number": ["--seconds", "long"],
    "too long": ["--seconds", "1e9"],
    "option without its value": ["--seconds"],
    "flag with a value": ["--json=yes"],
    "chart in JSON": ["--terminal-plot", "--json"],
    "plot without its folder": ["--plot"],
    "unknown option": ["--nonsense"],
    "extra argument": ["now"],
}

BENCH_ATTENTION: dict[str, list[str]] = {
    "no list": ["--batch-sizes", "1,x"],
    "empty batch": ["--batch-sizes", "0"],
    "prefix below zero": ["--prefix", "-1"],
    "negative suffix": ["--suffix", "-4"],
    "heads that do not fit": ["--heads", "7"],
    "no heads": ["--heads", "0"],
    "head of no width": ["--head-dim", "0"],
    "block of nothing": ["--block-size", "0"],
    "unknown dtype": ["--dtype", "int3"],
    "unknown baseline": ["--baseline", "magic"],
    "unknown suite": ["--suite", "magic"],
    "unknown device": ["--device", "abacus"],
    "device that is not there": ["--device", "cuda:99"],
    "unknown option": ["--nonsense"],
    "extra argument": ["now"],
}

BENCH_DECODE: dict[str, list[str]] = {
    "no list": ["--batch-sizes", "1,x"],
    "empty batch": ["--batch-sizes", "0"],
    "prefix below zero": ["--prefix", "-1"],
    "negative suffix": ["--suffix", "-4"],
    "no steps": ["--steps", "0"],
    "unknown dtype": ["--dtype", "int3"],
    "unknown baseline": ["--baseline", "magic"],
    "unknown shape": ["--shape", "magic"],
    "model and shape": ["--model", "embedded", "--shape", "embedded"],
    "no such model": ["--model", "./none", "--batch-sizes", "1"],
    "unknown device": ["--device", "abacus"],
    "device that is not there": ["--device", "cuda:99"],
    "compiled on a CPU": ["--compile", "--device", "cpu", "--shape", "embedded"],
    "unknown option": ["--nonsense"],
    "extra argument": ["now"],
}

BENCH_SEARCH: dict[str, list[str]] = {
    "unknown algorithm": ["--algorithms", "magic"],
    "no algorithm": ["--algorithms", ","],
    "no steps": ["--steps", "0"],
    "steps that are no number": ["--steps", "many"],
    "no rows": ["--batch", "0"],
    "no repeats": ["--repeats", "0"],
    "unknown baseline": ["--baseline", "magic"],
    "unknown device": ["--device", "abacus"],
    "device that is not there": ["--device", "cuda:99"],
    "unknown dtype": ["--dtype", "int3"],
    "chart in JSON": ["--terminal-plot", "--json"],
    "plot without its folder": ["--plot"],
    "unknown option": ["--nonsense"],
    "extra argument": ["now"],
}

# What is no trace, for each command that reads one.
NO_TRACE: dict[str, list[str]] = {
    "no such file": ["none.jsonl"],
    "folder": ["folder"],
    "empty file": ["empty.jsonl"],
    "binary file": ["binary.jsonl"],
    "text file": ["text.jsonl"],
    "JSON that is no trace": ["list.jsonl"],
    "trace without its beginning": ["middle.jsonl"],
    "field of another type": ["wrong.jsonl"],
    "damage in the middle": ["damaged.jsonl"],
    "trace of a later version": ["later.jsonl"],
    "nesting without end": ["deep.jsonl"],
    "name too long": [LONG],
    "name with a NUL": ["a\0b"],
}

SHOW: dict[str, list[str]] = NO_TRACE | {
    "no trace": [],
    "two traces": ["good.jsonl", "good.jsonl"],
    "unknown option": ["good.jsonl", "--nonsense"],
    "unknown format": ["good.jsonl", "-f", "pdf"],
    "format that the name does not tell": ["good.jsonl", "--output", "tree.xyz"],
    "output nowhere": ["good.jsonl", "--output", "none/t.html"],
    "output in a folder's place": ["good.jsonl", "-f", "html", "--output", "folder"],
    "no lines": ["good.jsonl", "--lines", "0"],
    "lines where none are": ["good.jsonl", "-f", "html", "--lines", "3"],
    "lines that are no number": ["good.jsonl", "--lines", "few"],
    "motion where none is": ["good.jsonl", "-f", "md", "--animate"],
}

REPLAY: dict[str, list[str]] = NO_TRACE | {
    "no trace": [],
    "unknown option": ["good.jsonl", "--nonsense"],
    "no speed": ["good.jsonl", "--speed", "0"],
    "speed without end": ["good.jsonl", "--speed", "inf"],
    "speed that is no number": ["good.jsonl", "--speed", "fast"],
    "steps without a terminal": ["good.jsonl", "--step"],
    "contradiction": ["good.jsonl", "--verify", "--step"],
    "option of another kind of replay": ["good.jsonl", "--json"],
    "settings of another frtool": ["unknown.jsonl", "--verify"],
    "code that nobody trusts": ["remote.jsonl", "--verify"],
    "unknown device": ["good.jsonl", "--verify", "--device", "abacus"],
}

RESUME: dict[str, list[str]] = NO_TRACE | {
    "no trace": [],
    "two traces": ["good.jsonl", "good.jsonl"],
    "unknown option": ["good.jsonl", "--nonsense"],
    "settings of another frtool": ["unknown.jsonl"],
    "code that nobody trusts": ["remote.jsonl"],
    "program that nobody trusts": ["command.jsonl"],
    "picture of another kind": ["unknown.jsonl", "--picture", "tree.png"],
}

COMPARE: dict[str, list[str]] = {name: [*argv, "good.jsonl"] for name, argv in NO_TRACE.items()} | {
    "nothing": [],
    "one trace": ["good.jsonl"],
    "three traces": ["good.jsonl"] * 3,
    "unknown option": ["good.jsonl", "good.jsonl", "--nonsense"],
    "second is no trace": ["good.jsonl", "text.jsonl"],
    "trace and evaluation": ["good.jsonl", "evaluation"],
    "evaluations without results": ["evaluation", "evaluation"],
}

MODELS: dict[str, list[str]] = {
    "no such folder": ["none"],
    "file": ["text.jsonl"],
    "one folder too many": [".", "none"],
    "blank name": [" "],
    "name too long": [LONG],
    "name with a NUL": ["a\0b"],
    "undecodable name": [UNDECODABLE],
    "dash": ["-"],
    "unknown option": ["--nonsense"],
    "flag with a value": ["--json=yes"],
    "hub name in a folder's place": ["someone/some-model"],
}

DOCTOR: dict[str, list[str]] = {
    "unknown option": ["--nonsense"],
    "unknown short option": ["-x"],
    "option that is nearly right": ["--jsno"],
    "extra argument": ["now"],
    "two arguments": ["now", "later"],
    "empty argument": [""],
    "dash": ["-"],
    "flag with a value": ["--json=yes"],
    "other flag with a value": ["--quick=3"],
    "argument after the options": ["--quick", "--", "--json"],
}

ROOT: dict[str, list[str]] = {
    "unknown command": ["serch"],
    "prompt in a command's place": [PUZZLE],
    "unknown option": ["--nonsense"],
    "empty command": [""],
    "dash": ["-"],
    "command with a NUL": ["a\0b"],
    "undecodable command": [UNDECODABLE],
    "command in capitals": ["SEARCH", PUZZLE],
    "flag with a value": ["--version=2"],
    "unknown benchmark": ["bench", "magic"],
}

CASES: dict[tuple[str, ...], dict[str, list[str]]] = {
    (): ROOT,
    ("search",): SEARCH,
    ("eval",): EVAL,
    ("bench", "allocator"): BENCH_ALLOCATOR,
    ("bench", "attention"): BENCH_ATTENTION,
    ("bench", "decode"): BENCH_DECODE,
    ("bench", "search"): BENCH_SEARCH,
    ("show",): SHOW,
    ("replay",): REPLAY,
    ("resume",): RESUME,
    ("compare",): COMPARE,
    ("models",): MODELS,
    ("doctor",): DOCTOR,
}


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command of the application that is no group."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_events: Any) -> Path:
    """A working directory with the files of the cases, no network and nothing on stdin."""
    for name, data in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    with TraceWriter(tmp_path / "good.jsonl") as writer:
        for event in make_events(nodes=5):
            writer.write(event)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    return tmp_path


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def test_every_command_has_ten_kinds_of_bad_input() -> None:
    assert set(CASES) - {()} == set(commands(typer.main.get_command(app)))
    assert all(len(cases) >= 10 for cases in CASES.values())


@pytest.mark.parametrize(
    ("command", "argv"),
    [
        pytest.param(command, argv, id=f"{' '.join(('frtool', *command))}: {name}")
        for command, cases in CASES.items()
        for name, argv in cases.items()
    ],
)
def test_bad_input_is_one_line(
    place: Path, capfd: pytest.CaptureFixture[str], command: tuple[str, ...], argv: list[str]
) -> None:
    before = contents(place)
    status = run([*command, *argv])
    out, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith("frtool: ")]
    assert out == ""
    assert status in (1, 2), err
    assert lines, "nothing was said"
    assert lines[0].startswith("error: "), err
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("hint: ")), err
    assert "unexpected" not in lines[0] or "unexpected extra argument" in lines[0], err
    assert "Traceback" not in err
    assert len(err) < 6500
    assert contents(place) == before
