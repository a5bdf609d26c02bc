"""Playing a recorded search on a terminal, and what is said of the difference between two."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from frtool.cli.app import run
from frtool.replay.difference import compare_trees
from frtool.search.events import Backup, Ended, Event, NodeAdded, Pruned
from frtool.trace import TraceWriter


def write(path: Path, events: list[Event]) -> Path:
    with TraceWriter(path) as writer:
        for event in events:
            writer.write(event)
    return path


def frtool(capfd: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    status = run([str(a) for a in argv])
    captured = capfd.readouterr()
    return status, captured.out, captured.err


@pytest.fixture
def events(make_events: Callable[..., list[Event]]) -> list[Event]:
    return make_events(nodes=60)


@pytest.fixture
def trace(tmp_path: Path, events: list[Event]) -> Path:
    return write(tmp_path / "run.jsonl", events)


class Terminal:
    """`frtool replay` on a pseudo-terminal of 100 by 30."""

    def __init__(self, *argv: object) -> None:
        pexpect, pyte = pytest.importorskip("pexpect"), pytest.importorskip("pyte")
        env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")} | {"TERM": "xterm-256color"}
        command = ["-m", "frtool", "replay", *map(str, argv)]
        self.child = pexpect.spawn(sys.executable, command, dimensions=(30, 100), env=env, timeout=20)
        self.screen = pyte.Screen(100, 30)
        self.stream = pyte.ByteStream(self.screen)
        self.ended: Exception | None = None
        self._over = (pexpect.EOF, OSError)
        self._late = pexpect.TIMEOUT

    @property
    def text(self) -> str:
        return "\n".join(self.screen.display)

    def read(self, until: Callable[[], object]) -> None:
        end = time.monotonic() + 20
        while self.ended is None and not until():
            assert time.monotonic() < end, self.text
            try:
                self.stream.feed(self.child.read_nonblocking(65536, timeout=0.05))
            except self._late:
                continue
            except self._over as error:
                self.ended = error

    def until_event(self, found: Callable[[int], bool]) -> int:
        """Read until the footer shows an event number that fits; that number."""

        def number() -> int:
            match = re.search(r"event (\d+)/", self.text)
            return int(match[1]) if match else -1

        self.read(lambda: found(number()))
        return number()

    def status(self) -> int:
        self.read(lambda: False)
        self.child.close()
        return int(self.child.exitstatus)


def test_without_a_terminal_only_the_report_is_printed(trace, capfd):
    status, out, err = frtool(capfd, "replay", trace)
    assert (status, out) == (0, "")
    assert "tokens sampled" in err
    assert "\x1b" not in err


def test_replay_draws_the_search_and_ends_with_its_report(trace):
    terminal = Terminal(trace, "--speed", "2")
    terminal.until_event(lambda n: n > 20)
    assert "frtool mcts" in terminal.text
    assert terminal.status() == 0
    assert "tokens sampled" in terminal.text
    assert "event" not in terminal.text


def test_steps_go_forwards_and_backwards(trace, events):
    nodes = [i + 1 for i, e in enumerate(events) if isinstance(e, NodeAdded)]
    terminal = Terminal(trace, "--step")
    assert terminal.until_event(lambda n: n > 1) == nodes[0]
    for key, expected in (("n", nodes[1]), ("\x1b[C", nodes[2]), ("b", nodes[1]), ("\x1b[D", nodes[0]), ("b", 1)):
        terminal.child.send(key)
        terminal.until_event(lambda n, expected=expected: n == expected)
    assert "space play" in terminal.text
    terminal.child.send("q")
    assert terminal.status() == 0
    assert not terminal.screen.cursor.hidden


def test_a_key_pauses_and_another_jumps_to_the_end(trace):
    terminal = Terminal(trace, "--speed", "0.05")
    terminal.until_event(lambda n: n >= 1)
    terminal.child.send(" ")
    terminal.read(lambda: "space play" in terminal.text)
    terminal.child.send("e")
    assert terminal.status() == 0
    assert "tokens sampled" in terminal.text


def test_interrupt_leaves_the_terminal_as_it_was(trace):
    terminal = Terminal(trace, "--speed", "0.01")
    terminal.until_event(lambda n: n >= 1)
    terminal.child.sendintr()
    assert terminal.status() == 130
    assert not terminal.screen.cursor.hidden


def test_cut_trace_is_played_as_far_as_it_goes(trace, tmp_path, capfd):
    cut = tmp_path / "cut.jsonl"
    cut.write_bytes(trace.read_bytes()[:4000])
    status, _, err = frtool(capfd, "replay", cut)
    assert status == 0
    assert "unfinished" in err
    assert err.endswith("warning: the trace breaks off before the search's end\n")


@pytest.mark.parametrize("argv", ["--speed 0", "--speed -1", "--speed nan", "--speed x", "--step"])
def test_bad_replay_is_a_usage_error(argv, trace, capfd, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    status, out, err = frtool(capfd, "replay", trace, *argv.split())
    assert (status, out) == (2, "")
    assert err.startswith("error: ")


@pytest.mark.parametrize("command", ["replay", "compare"])
def test_what_is_no_trace_gets_one_line(command, trace, tmp_path, capfd):
    for content in (None, b"", b"\x00\xff" * 100, b"{}\n", b'{"kind": "run", "version": 99}\n'):
        path = tmp_path / "bad.jsonl"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        status, out, err = frtool(capfd, command, path, *([trace] if command == "compare" else []))
        assert (status, out) == (1, ""), content
        assert err.startswith("error: ")
        assert len(err.splitlines()) <= 2


def test_same_search_twice_is_the_same_to_the_last_bit(trace, tmp_path, make_events, capfd):
    again = write(tmp_path / "again.jsonl", make_events(nodes=60))
    status, out, _ = frtool(capfd, "compare", trace, again)
    assert status == 0
    assert out.splitlines()[-1].startswith("the trees are the same: ")
    assert out.splitlines()[-1].endswith("to the last bit")


def test_other_seed_names_the_setting_and_the_first_step(trace, tmp_path, make_events, capfd):
    other = write(tmp_path / "other.jsonl", make_events(nodes=60, seed=1))
    out = frtool(capfd, "compare", trace, other)[1]
    assert re.search(r"^seed +0 +1$", out, re.MULTILINE)
    assert "the first that differs is 0.0, in its text:\n  A: " in out
    record = json.loads(frtool(capfd, "compare", trace, other, "--json")[1])
    assert record["settings"] == {"seed": [0, 1]}
    assert record["first_difference"]["node"] == "0.0"
    assert record["same"] is False
    assert record["a"]["nodes"] == 60


def changed(events: list[Event], index: int, **fields: object) -> list[Event]:
    return [*events[:index], replace(events[index], **fields), *events[index + 1 :]]


def test_first_difference_is_the_earliest_by_whatever_field(events):
    nodes = [i for i, e in enumerate(events) if isinstance(e, NodeAdded)]
    assert compare_trees(events, events).difference is None
    for name, value in (("text", "other"), ("tokens", 99), ("reward", 0.123), ("logprob", -99.0), ("answer", "7")):
        late = changed(events, nodes[20], **{name: value})
        difference = compare_trees(events, changed(late, nodes[30], text="later")).difference
        assert difference is not None
        assert (difference.node, difference.field) == (events[nodes[20]].id, name)
        assert difference.b == value


def test_rounding_is_no_difference_but_is_told(events):
    i = next(i for i, e in enumerate(events) if isinstance(e, NodeAdded))
    comparison = compare_trees(events, changed(events, i, logprob=events[i].logprob + 1e-7))
    assert comparison.difference is None
    assert 0 < comparison.deviation < 2e-7


def test_missing_node_backup_and_pruning_are_found(events):
    last = max(i for i, e in enumerate(events) if isinstance(e, NodeAdded))
    kept = [e for e in events[:last] if not isinstance(e, Ended)]
    difference = compare_trees(events, kept).difference
    assert difference is not None
    assert (difference.node, difference.field, difference.b) == (events[last].id, None, None)
    assert compare_trees(kept, events).difference == replace(difference, a=None, b=difference.a)
    node = next(e.id for e in events if isinstance(e, NodeAdded))
    for extra in (Backup(node, 0.5), Pruned([node], "beam")):
        found = compare_trees(events, [*events[:-1], extra, events[-1]]).difference
        assert found is not None
        assert found.field in ("visits", "pruned")
