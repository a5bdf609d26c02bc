"""The live tree on a real pseudo-terminal, read back through a screen emulator."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

pexpect = pytest.importorskip("pexpect")
pyte = pytest.importorskip("pyte")

from frtool.search.events import Ended, NodeAdded, RunStarted, Selected, Tick  # noqa: E402
from frtool.trace import TraceWriter  # noqa: E402
from frtool.view.live import FRAME_SECONDS, LiveView  # noqa: E402
from frtool.view.plain import PlainView  # noqa: E402

SHOW = """
import sys, time
from frtool.search.events import Ended
from frtool.trace import TraceReader
from frtool.view import view_for
with view_for() as view:
    view.progress("reading weights")
    time.sleep(0.3)
    for event in TraceReader(sys.argv[1]):
        time.sleep(float(sys.argv[2]))
        view.show(event)
"""


PAUSE = """
import itertools, sys
from frtool.trace import TraceReader
from frtool.view import view_for
with view_for() as view:
    for event in itertools.islice(TraceReader(sys.argv[1]), int(sys.argv[2])):
        view.show(event)
    view.refresh()
    sys.stdin.readline()
"""
SNAPSHOTS = Path(__file__).parent / "snapshots"


class Terminal:
    """A child on a pseudo-terminal, and the screen that it draws."""

    def __init__(self, command: list[str], width: int, height: int, **env: str) -> None:
        clean = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.child = pexpect.spawn(
            command[0],
            command[1:],
            dimensions=(height, width),
            timeout=30,
            env=clean | {"TERM": "xterm-256color"} | env,
        )
        self.screen = pyte.Screen(width, height)
        self.stream = pyte.ByteStream(self.screen)
        self.raw = b""

    def read(self, until: Callable[[], bool], seconds: float = 20.0) -> None:
        """Feed the screen until `until()` holds or the child ends."""
        end = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < end, f"not within {seconds} s on:\n{self}"
            try:
                data = self.child.read_nonblocking(65536, timeout=0.1)
            except pexpect.TIMEOUT:
                continue
            except pexpect.EOF:
                break
            self.raw += data
            self.stream.feed(data)

    def shows(self, *words: str) -> bool:
        text = str(self)
        return all(word in text for word in words)

    def read_more(self) -> None:
        seen = len(self.raw)
        self.read(lambda: len(self.raw) > seen)

    def settle(self) -> None:
        """Read until nothing more comes."""
        seen = -1
        while len(self.raw) != seen:
            seen = len(self.raw)
            with contextlib.suppress(pexpect.TIMEOUT):
                data = self.child.read_nonblocking(65536, timeout=0.5)
                self.raw += data
                self.stream.feed(data)

    def finish(self) -> int:
        self.read(lambda: False)
        self.child.close()
        return self.child.exitstatus if self.child.exitstatus is not None else -self.child.signalstatus

    def resize(self, width: int, height: int) -> None:
        self.screen.resize(height, width)
        self.child.setwinsize(height, width)

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.screen.display]

    def __str__(self) -> str:
        return "\n".join(self.lines)


@pytest.fixture
def show(tmp_path, make_events):
    def start(width: int = 80, height: int = 24, pause: float = 0.006, **env: str) -> Terminal:
        path = tmp_path / "t.jsonl"
        with TraceWriter(path) as writer:
            for event in make_events("mcts", nodes=100, seed=3, steer=False):
                writer.write(event)
        return Terminal([sys.executable, "-c", SHOW, str(path), str(pause)], width, height, **env)

    return start


def like_snapshot(name: str, text: str) -> None:
    """Hold `text` against the kept one. FRTOOL_SNAPSHOTS=write keeps what there is now, to be read and committed."""
    path = SNAPSHOTS / f"{name}.txt"
    if os.environ.get("FRTOOL_SNAPSHOTS") == "write":
        path.write_text(text + "\n", encoding="utf-8")
    assert text + "\n" == path.read_text(encoding="utf-8")


@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 60)])
def test_screens_are_as_they_were_approved(show, make_events, tmp_path, width, height):
    finished = show(width, height, pause=0)
    assert finished.finish() == 0
    like_snapshot(f"finished-{width}x{height}", str(finished).rstrip())
    # The terminal's own colours, no background and no fixed shade: legible on light and on dark.
    assert re.search(rb"\x1b\[[0-9;]*(?:[34]8;|4[0-7][;m]|10[0-7][;m])", finished.raw) is None
    events = make_events("mcts", nodes=100, seed=3, steer=False)
    at = next(i for i, event in enumerate(events) if i > 30 and isinstance(event, Tick))
    asked = [name for event in events[:at] if isinstance(event, Selected) for name in event.ids]
    came = {event.id for event in events[:at] if isinstance(event, NodeAdded)}
    pending = [name for name in asked if name not in came]
    growing = {name: f"6 * 4 = 2 {name}" for name in pending}
    events[at] = replace(
        events[at], growing=growing, evicted=[name for name in sorted(came) if name.count(".") == 2][:3]
    )
    with TraceWriter(tmp_path / "t.jsonl") as writer:
        for event in events:
            writer.write(event)
    running = Terminal([sys.executable, "-c", PAUSE, str(tmp_path / "t.jsonl"), str(at + 1)], width, height)
    running.read(lambda: running.shows("6 * 4 = 2", "frees"))
    running.settle()
    running.child.sendline("")
    text = str(running)
    running.finish()
    like_snapshot(f"running-{width}x{height}", text.rstrip())


@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 60)])
def test_the_tree_grows_in_place(show, width, height):
    terminal = show(width, height)
    terminal.read(lambda: "reading weights" in str(terminal))
    words = ("Make 24 from 4, 5, 6, 10", "╴✓ ", "blocks", "tokens/s", " 0.98 ")
    terminal.read(
        lambda: terminal.lines[0].startswith("frtool mcts · embedded · cpu float32") and terminal.shows(*words)
    )
    assert str(terminal).count("frtool mcts") == 1
    assert "reading weights" not in str(terminal)
    assert terminal.finish() == 0
    text = str(terminal)
    assert "✓ verified 24" in text
    assert "without sharing" in text or "unshared" in text
    assert not terminal.screen.cursor.hidden


def test_the_best_path_is_bright_and_the_rest_is_counted(show):
    terminal = show()
    terminal.read(lambda: bool(re.search(r"\+\d+ more", str(terminal))) and terminal.shows("╴✓ ", " 0.98 "))
    row = next(i for i, line in enumerate(terminal.lines) if "╴✓ " in line)
    cell = terminal.screen.buffer[row][terminal.lines[row].index("= 24")]
    assert cell.bold
    assert cell.fg == "green"
    terminal.finish()


def test_a_resize_leaves_one_picture(show):
    terminal = show(pause=0.02)
    terminal.read(lambda: "blocks" in str(terminal))
    for width, height in ((50, 16), (120, 30), (80, 24)):
        terminal.resize(width, height)
        for _ in range(3):  # a frame may be half read, and the next one is the first of the new size
            time.sleep(FRAME_SECONDS)
            terminal.read_more()
        terminal.read(lambda: terminal.shows("frtool mcts", "Make 24 from"))
        text = str(terminal)
        assert text.count("frtool mcts") == 1, text
        assert text.count("Make 24 from") == 1, text
    assert terminal.finish() == 0
    assert str(terminal).count("✓ verified 24") == 1


def test_without_colour_the_picture_says_the_same(show):
    terminal = show(NO_COLOR="1")
    assert terminal.finish() == 0
    assert re.search(rb"\x1b\[[0-9;]*3[1-7]", terminal.raw) is None
    assert "✓ verified 24" in str(terminal)


def test_a_dumb_terminal_gets_lines(show):
    terminal = show(TERM="dumb")
    assert terminal.finish() == 0
    assert b"\x1b" not in terminal.raw
    assert b"frtool: mcts with embedded on cpu float32" in terminal.raw
    assert "verified 24" in str(terminal)


def test_an_ascii_terminal_gets_ascii(show):
    terminal = show(PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert terminal.finish() == 0
    assert terminal.raw.isascii()
    assert "|-" in str(terminal)
    assert "+ verified 24" in str(terminal)


HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e[bold red]x[/]\r\nnext\x00"


@pytest.mark.parametrize("width", [80, 160])
def test_hostile_text_never_reaches_the_terminal_raw(width):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=width, height=30, color_system="standard")
    run = RunStarted(HOSTILE, {"algorithm": HOSTILE, "model": HOSTILE}, {"name": HOSTILE, "attention": HOSTILE})
    step = NodeAdded("0.0", HOSTILE, 1, -1.0, 0.5, 0.5, "end", HOSTILE, True)
    with LiveView(console) as view:
        view.progress(HOSTILE)
        for event in (run, step, Ended("failed: " + HOSTILE, "0.0", HOSTILE)):
            view.show(event)
    plain = PlainView(Console(file=stream, force_terminal=True, width=width))
    plain.progress(HOSTILE)
    for event in (run, step, Ended(HOSTILE, "0.0", HOSTILE)):
        plain.show(event)
    out = stream.getvalue()
    assert "\x1b[2J" not in out
    assert "\x1b]" not in out
    assert not set("\x00\x07\x9b\u202e") & set(out)
    assert "[bold red]x[/]" in out


class Clock:
    """Time that passes only where it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_there_are_at_most_ten_frames_a_second(make_events):
    clock = Clock()
    view = LiveView(Console(file=io.StringIO(), force_terminal=True, width=80, height=24), clock=clock)
    events = make_events("mcts", nodes=100)[:-1]
    with view:
        for event in events:
            view.show(event)
            clock.now += 0.001
    assert 1 <= view.frames <= len(events) * 0.001 / FRAME_SECONDS + 1


def test_a_dear_frame_makes_frames_rare(make_events):
    clock = Clock()

    class SlowTerminal(io.StringIO):
        def write(self, text: str) -> int:
            clock.now += 0.05
            return super().write(text)

    view = LiveView(Console(file=SlowTerminal(), force_terminal=True, width=80, height=24), clock=clock)
    with view:
        for event in make_events("mcts", nodes=100)[:-1]:
            view.show(event)
            clock.now += 0.05
    assert view.drawing_seconds < 0.03 * clock.now


def test_plain_lines_are_few_and_far_between(make_events):
    clock = Clock()
    stream = io.StringIO()
    view = PlainView(Console(file=stream, width=100), clock=clock)
    events = make_events("mcts", nodes=300, seed=3)
    for event in events[:-1]:
        view.show(event)
        clock.now += 120 / len(events)  # a search of two minutes
    lines = stream.getvalue().splitlines()
    assert 5 <= len(lines) <= 14
    assert all(line.startswith("frtool: ") for line in lines)
    assert "KV" in lines[-1]
    assert "best" in lines[-1]
