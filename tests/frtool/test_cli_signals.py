"""Ctrl-C, kills and pipes that close, in processes of their own."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import time

import pytest

from frtool.search.events import Ended
from frtool.trace import TraceReader


class Running:
    """A search in a child process."""

    def __init__(self, command: list[str], *argv: str, **streams) -> None:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL} | streams
        self.process = subprocess.Popen([*command, "search", *argv], text=True, **pipes)

    def wait_for(self, path, lines: int) -> None:
        self._wait(lambda: path.exists() and path.read_bytes().count(b"\n") >= lines)

    def wait_for_an_answer(self, path, terminal: int | None = None) -> None:
        """`terminal` is read meanwhile: the search waits for one that nobody reads."""

        def come() -> bool:
            while terminal is not None and select.select([terminal], [], [], 0)[0]:
                os.read(terminal, 1 << 16)
            return path.exists() and b'"answer": "' in path.read_bytes()

        self._wait(come)

    def _wait(self, come) -> None:
        end = time.monotonic() + 20
        while not come():
            assert time.monotonic() < end
            assert self.process.poll() is None
            time.sleep(0.02)

    def result(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=20)
        assert "Traceback" not in (err or "")
        return self.process.returncode, out, err


@pytest.fixture
def trace(tmp_path):
    return tmp_path / "t.jsonl"


def ended(path) -> Ended:
    reader = TraceReader(path)
    events = list(reader)
    assert reader.complete
    assert not reader.truncated
    assert sum(isinstance(e, Ended) for e in events) == 1
    return events[-1]


def test_ctrl_c_ends_with_the_best_answer_so_far(fake_cli, trace):
    search = Running(fake_cli, "slow", "--trace", str(trace))
    search.wait_for_an_answer(trace)
    search.process.send_signal(signal.SIGINT)
    status, out, err = search.result()
    assert status == 130
    assert out.strip() == ended(trace).answer
    assert ended(trace).reason == "interrupted"
    assert "stopping at the next step" in err
    assert "interrupted" in err


def test_ctrl_c_twice_ends_at_once_with_a_whole_trace(fake_cli, trace):
    search = Running(fake_cli, "hang", "--json", "--trace", str(trace))
    search.wait_for_an_answer(trace)
    search.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert search.process.poll() is None
    search.process.send_signal(signal.SIGINT)
    status, out, _ = search.result()
    assert status == json.loads(out)["status"] == 130
    assert json.loads(out)["reason"] == ended(trace).reason == "interrupted"
    assert json.loads(out)["answer"] == ended(trace).answer


@pytest.mark.parametrize("argv", [[], ["--json"]])
def test_ctrl_c_while_loading(fake_cli, trace, argv):
    search = Running(fake_cli, "loading", "--trace", str(trace), *argv)
    assert search.process.stderr is not None
    while "reading weights" not in search.process.stderr.readline():
        pass
    search.process.send_signal(signal.SIGINT)
    status, out, _ = search.result()
    assert status == 130
    assert not trace.exists()
    assert json.loads(out)["status"] == 130 if argv else out == ""


def test_a_kill_signal_ends_in_order(fake_cli, trace):
    search = Running(fake_cli, "slow", "--trace", str(trace))
    search.wait_for_an_answer(trace)
    search.process.terminate()
    status, out, _ = search.result()
    assert status == 128 + signal.SIGTERM
    assert out.strip() == ended(trace).answer


def test_kill_9_leaves_a_readable_trace(fake_cli, trace):
    search = Running(fake_cli, "slow", "--trace", str(trace))
    search.wait_for(trace, 20)
    search.process.kill()
    search.result()
    reader = TraceReader(trace)
    assert len(list(reader)) >= 20
    assert not reader.complete


def test_a_closed_stdout_is_quiet(fake_cli):
    read, write = os.pipe()
    os.close(read)
    search = Running(fake_cli, "x", "-q", stdout=write)
    os.close(write)
    status, _, err = search.result()
    assert status == 1
    assert err == ""


def test_a_terminal_that_hangs_up_ends_the_search_in_order(fake_cli, trace):
    ours, theirs = pty.openpty()
    search = Running(fake_cli, "slow", "--trace", str(trace), stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    search.wait_for_an_answer(trace, ours)
    os.close(ours)
    search.process.send_signal(signal.SIGHUP)  # as the kernel does to the session of a terminal that goes
    assert search.process.wait(20) in (128 + signal.SIGHUP, 1)
    assert ended(trace).reason == "interrupted"
    assert ended(trace).answer is not None


def test_a_terminal_that_vanishes_without_a_word_lets_the_search_end(fake_cli, trace):
    ours, theirs = pty.openpty()
    search = Running(fake_cli, "slow", "--trace", str(trace), stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    search.wait_for(trace, 1)
    os.close(ours)
    assert search.process.wait(20) == 1
    assert ended(trace).answer is not None


def test_a_vanished_stderr_does_not_stop_the_search(fake_cli, trace):
    read, write = os.pipe()
    os.close(read)
    search = Running(fake_cli, "x", "--trace", str(trace), stderr=write)
    os.close(write)
    status, out, _ = search.result()
    assert status == 0
    assert out.strip() == ended(trace).answer
