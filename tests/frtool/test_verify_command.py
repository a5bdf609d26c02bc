"""A program of the user's as verifier: verdicts, limits, and programs that misbehave."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from frtool.errors import FrtoolError, UsageError
from frtool.verify.command import CommandVerifier, Verdict


@pytest.fixture
def shell() -> Callable[..., CommandVerifier]:
    """A verifier that runs a line of shell, with the file's path as `$1`."""

    def make(script: str, **limits: float) -> CommandVerifier:
        return CommandVerifier(f"sh -c {_quoted(script)} sh", **limits)  # type: ignore[arg-type]

    return make


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return not Path("/proc").is_dir()
    return state not in "ZX"


def _dies(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while _is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not _is_alive(pid)


def test_the_answer_is_on_stdin_and_in_the_file(shell: Callable[..., CommandVerifier]) -> None:
    verifier = shell('[ "$(cat)" = "4 2" ] && [ "$(cat "$1")" = "4 2" ]')
    assert verifier.judge("4 2") == Verdict(True, 1.0, "exit status 0")
    assert verifier.judge("42") == Verdict(False, 0.0, "exit status 1")
    assert verifier.verify("4 2")
    assert verifier.score("42") == 0.0


def test_a_pair_of_braces_is_where_the_file_goes() -> None:
    assert CommandVerifier("grep -q right {} /dev/null").verify("all right")
    assert not CommandVerifier("grep -q right {} /dev/null").verify("wrong")


@pytest.mark.parametrize(
    ("output", "score"),
    [
        ("0.25\\n", 0.25),
        (" 1e-1 \\nmore\\n", 0.1),
        (".5", 0.5),
        ("7", 1.0),
        ("-3", 0.0),
        ("score 0.3", 1.0),
        ("nan", 1.0),
        ("inf", 1.0),
        ("\\n0.3", 1.0),
        ("1e9999", 1.0),
        ("\\377\\376\\n0.1", 1.0),
    ],
)
def test_a_number_on_the_first_line_is_the_score(
    shell: Callable[..., CommandVerifier], output: str, score: float
) -> None:
    verdict = shell(f"printf -- '{output}'").judge("x")
    assert (verdict.right, verdict.score) == (True, score)


def test_a_wrong_answer_may_have_a_score(shell: Callable[..., CommandVerifier]) -> None:
    assert shell("echo 0.75; exit 3").judge("x") == Verdict(False, 0.75, "exit status 3")


def test_a_program_that_a_signal_ended_was_wrong(shell: Callable[..., CommandVerifier]) -> None:
    assert shell("kill -9 $$").judge("x") == Verdict(False, 0.0, "signal 9")


def test_equal_answers_are_judged_once(shell: Callable[..., CommandVerifier], tmp_path: Path) -> None:
    verifier = shell(f"echo run >> {tmp_path / 'log'}")
    assert [verifier.verify(answer) for answer in ("a", "b", "a", "b", "a")] == [True] * 5
    assert verifier.runs == 2
    assert (tmp_path / "log").read_text() == "run\nrun\n"


def test_there_is_no_shell(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    verifier = CommandVerifier(f"echo $(touch {mark}) ; touch {mark} `touch {mark}`")
    assert verifier.verify(f"'; touch {mark}; '$(touch {mark})")
    assert not mark.exists()


def test_a_hanging_program_is_killed_at_the_time_limit(shell: Callable[..., CommandVerifier], tmp_path: Path) -> None:
    note = tmp_path / "pid"
    start = time.monotonic()
    verdict = shell(f"trap '' TERM INT; echo $$ > {note}; while :; do sleep 1; done", seconds=0.3).judge("x")
    assert verdict == Verdict(False, 0.0, "time limit")
    assert time.monotonic() - start < 3
    assert _dies(int(note.read_text()))


def test_a_program_that_closes_its_output_and_hangs_is_killed(shell: Callable[..., CommandVerifier]) -> None:
    assert shell("exec >&-; sleep 60", seconds=0.3).judge("x").why == "time limit"


def test_children_left_behind_are_killed_and_not_waited_for(
    shell: Callable[..., CommandVerifier], tmp_path: Path
) -> None:
    note = tmp_path / "pids"
    script = f"for i in 1 2 3; do (trap '' HUP; sleep 60) & echo $! >> {note}; done; echo 0.5; exit 0"
    start = time.monotonic()
    assert shell(script).judge("x") == Verdict(True, 0.5, "exit status 0")
    assert time.monotonic() - start < 3
    pids = [int(line) for line in note.read_text().split()]
    assert len(pids) == 3
    assert all(_dies(pid) for pid in pids)


def test_children_die_with_a_program_at_its_time_limit(shell: Callable[..., CommandVerifier], tmp_path: Path) -> None:
    note = tmp_path / "pid"
    assert shell(f"sleep 60 & echo $! > {note}; wait", seconds=0.3).judge("x").why == "time limit"
    assert _dies(int(note.read_text()))


def test_endless_output_ends_at_the_output_limit(shell: Callable[..., CommandVerifier]) -> None:
    start = time.monotonic()
    assert shell("yes 1").judge("x") == Verdict(False, 0.0, "output limit")
    assert time.monotonic() - start < 3


def test_output_up_to_the_limit_counts(shell: Callable[..., CommandVerifier]) -> None:
    assert shell("printf 0.5000", output_bytes=6).judge("x").score == 0.5
    assert shell("printf 0.50000", output_bytes=6).judge("x").why == "output limit"


def test_a_program_that_does_not_read_gets_a_large_answer(shell: Callable[..., CommandVerifier]) -> None:
    assert shell("exit 0").verify("x" * (4 << 20))


def test_an_answer_with_lone_surrogates_arrives_replaced(shell: Callable[..., CommandVerifier]) -> None:
    assert shell('[ "$(cat)" = "?x" ]').verify("\udcffx")


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("''", "empty"),
        ("sh 'x", "cannot be split"),
        ("no-such-program-at-all x", "there is no program"),
        ("/dev/null", "there is no program"),
        ("sh a\0b", "NUL"),
    ],
)
def test_a_command_that_cannot_work_is_refused_at_once(command: str, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        CommandVerifier(command)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_limits_that_allow_nothing_are_refused(seconds: float) -> None:
    with pytest.raises(UsageError, match="allow nothing"):
        CommandVerifier("true", seconds=seconds)


def test_a_program_that_cannot_be_started_is_a_failure_not_a_verdict(tmp_path: Path) -> None:
    script = tmp_path / "check"
    script.write_text("no interpreter line")
    script.chmod(0o755)
    with pytest.raises(FrtoolError, match="cannot be run"):
        CommandVerifier(str(script)).verify("x")


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    verifier = CommandVerifier("true")
    for index in range(3):
        verifier.verify(str(index))
    assert not list(tmp_path.iterdir())
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/fd")) == before
