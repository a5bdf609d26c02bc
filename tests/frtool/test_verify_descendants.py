"""Programs that detach what they start, and still leave nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from frtool.verify.command import CommandVerifier
from frtool.verify.descendants import Descendants, _below, _subreaper

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="orphans can be taken in on Linux only")


def program(path: Path, text: str) -> str:
    path.write_text(textwrap.dedent(text))
    return f"{sys.executable} -I -S {path}"


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_gone(pids: list[int]) -> bool:
    end = time.monotonic() + 5
    while any(map(is_alive, pids)) and time.monotonic() < end:
        time.sleep(0.01)
    return not any(map(is_alive, pids))


DETACHES = """
    import os, sys, time
    for _ in range({count}):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                with open({pids!r}, "a") as file:
                    file.write(f"{{os.getpid()}}\\n")
                null = os.open(os.devnull, os.O_RDWR)
                for stream in (0, 1, 2):
                    os.dup2(null, stream)
                time.sleep(600)
            os._exit(0)
    while open({pids!r}).read().count("\\n") < {count}:
        time.sleep(0.01)
    {then}
"""


@pytest.mark.parametrize("then", ["sys.exit(0)", "time.sleep(600)", "print('x' * 10**7)"])
def test_daemons_of_a_program_are_ended_with_it(tmp_path, then):
    pids = tmp_path / "pids"
    pids.touch()
    command = program(tmp_path / "p.py", DETACHES.format(count=3, pids=str(pids), then=then))
    verifier = CommandVerifier(command, seconds=3)
    verdict = verifier.judge("x")
    assert verdict.right == (then == "sys.exit(0)")
    found = [int(line) for line in pids.read_text().split()]
    assert len(found) == 3
    assert wait_gone(found)
    assert not set(found) & set(_below(os.getpid())), "they were not buried"


def test_a_program_that_forks_and_forks_is_ended_whole(tmp_path):
    command = program(
        tmp_path / "p.py",
        """
        import os, time
        for depth in range(5):
            os.fork()
            os.setsid() if os.getpid() != os.getsid(0) else None
        time.sleep(600)
        """,
    )
    before = set(_below(os.getpid()))
    assert CommandVerifier(command, seconds=1.0).judge("x").why == "time limit"
    assert set(_below(os.getpid())) <= before


def test_what_this_process_started_itself_lives_on(tmp_path):
    ours = subprocess.Popen(["sleep", "60"])
    detached = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        assert CommandVerifier("true").verify("x")
        with Descendants():
            beside = subprocess.Popen(["sleep", "60"])
        assert ours.poll() is None
        assert detached.poll() is None
        assert beside.poll() is None
    finally:
        for process in (ours, detached, beside):
            process.kill()
            process.wait()


def test_orphans_are_taken_in_only_meanwhile():
    assert _subreaper() == 0
    with Descendants():
        assert _subreaper() == 1
    assert _subreaper() == 0
