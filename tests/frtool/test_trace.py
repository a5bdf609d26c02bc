"""A trace survives kills, full disks and strangers' files."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frtool.errors import UsageError
from frtool.search.events import TRACE_VERSION, Backup, Ended, NodeAdded, Pruned, RunStarted, Selected, Tick, to_record
from frtool.trace import MAX_LINE_BYTES, TraceError, TraceReader, TraceWriter

TEXT = st.text(st.characters(), max_size=40)
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
COUNT = st.integers(0, 2**40)
ID = st.lists(st.integers(0, 99), max_size=5).map(lambda path: ".".join(["0", *map(str, path)]))
RUN = st.builds(RunStarted, TEXT, st.dictionaries(TEXT, TEXT | COUNT | st.none(), max_size=3), prompt_tokens=COUNT)
LATER = st.one_of(
    st.builds(
        NodeAdded, ID, TEXT, COUNT, NUMBER, NUMBER, st.none() | NUMBER, st.none() | TEXT, st.none() | TEXT,
        st.none() | st.booleans(), st.none() | ID,
    ),
    st.builds(Selected, st.lists(ID, max_size=4)),
    st.builds(Backup, ID, NUMBER),
    st.builds(Pruned, st.lists(ID, max_size=4), TEXT),
    st.builds(Tick, NUMBER, *[COUNT] * 9),
    st.builds(Ended, TEXT, st.none() | ID, st.none() | TEXT, seconds=NUMBER),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    RUN, st.lists(LATER, max_size=8, unique_by=lambda event: event.id if isinstance(event, NodeAdded) else id(event))
)
def test_what_was_written_is_read_back(tmp_path_factory, run, later):
    path = tmp_path_factory.mktemp("trace") / "t.jsonl"
    with TraceWriter(path) as writer:
        for event in (run, *later):
            writer.write(event)
    reader = TraceReader(path)
    assert list(reader) == [run, *later]
    assert not reader.truncated
    assert reader.complete == (bool(later) and isinstance(later[-1], Ended))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_trace_cut_anywhere_gives_its_whole_lines(tmp_path_factory, data):
    events = [RunStarted("née \u202e", {"a": 1}), NodeAdded("0.0", "step\n", 3, -1.0, 0.5), Ended("nodes", "0.0", "24")]
    path = tmp_path_factory.mktemp("trace") / "t.jsonl"
    with TraceWriter(path) as writer:
        for event in events:
            writer.write(event)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    cut = data.draw(st.integers(first, len(whole)))
    path.write_bytes(whole[:cut])
    reader = TraceReader(path)
    read = list(reader)
    assert read == events[: len(read)]
    lines = whole[:cut].count(b"\n")
    assert len(read) in (lines, lines + 1)  # the last line may be whole but for its line break
    assert reader.truncated == (whole[:cut][-1:] != b"\n" and len(read) == lines)


def test_each_event_is_on_disk_before_the_next(tmp_path):
    path = tmp_path / "t.jsonl"
    with TraceWriter(path) as writer:
        writer.write(RunStarted("q", {}))
        assert [type(e) for e in TraceReader(path)] == [RunStarted]
        writer.write(Backup("0", 1.0))
        assert len(path.read_text().splitlines()) == 2


def test_the_first_line_is_the_run_with_its_version(tmp_path, make_events):
    path = tmp_path / "t.jsonl"
    with TraceWriter(path) as writer:
        for event in make_events(nodes=10):
            writer.write(event)
    first = json.loads(path.read_text().splitlines()[0])
    assert first["kind"] == "run"
    assert first["version"] == TRACE_VERSION


def write_lines(path: Path, *records: object) -> Path:
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in records))
    return path


RUN_RECORD = to_record(RunStarted("q", {}))
STEP = {"kind": "node", "id": "0.0", "text": "a", "tokens": 1, "logprob": -1.0, "prior": 1.0}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        pytest.param([], "is empty", id="empty"),
        pytest.param(["\n\n"], "is empty", id="blank"),
        pytest.param([RUN_RECORD, "{broken\n", RUN_RECORD], "line 2", id="damage-in-the-middle"),
        pytest.param([RUN_RECORD, "{broken\n"], "line 2", id="damage-with-a-line-break"),
        pytest.param(["{bro"], "line 1", id="cut-before-anything"),
        pytest.param([{"kind": "node"}], "begins with a `run`", id="no-run"),
        pytest.param([RUN_RECORD, [1]], "line 2: no JSON object", id="not-an-object"),
        pytest.param([RUN_RECORD, {"kind": "party"}], "line 2: unknown event kind 'party'", id="unknown-kind"),
        pytest.param([RUN_RECORD, {"kind": "backup", "id": "0"}], "line 2", id="missing-field"),
        pytest.param([RUN_RECORD, {"kind": "backup", "id": 5, "value": 1}], "`id` is a int", id="wrong-type"),
        pytest.param([RUN_RECORD, {"kind": "backup", "id": "../x", "value": 1}], "no node id", id="no-id"),
        pytest.param([RUN_RECORD, {"kind": "select", "ids": ["0", None]}], "'None' is no node id", id="null-among-ids"),
        pytest.param([RUN_RECORD, {"kind": "backup", "id": "0", "value": 10**400}], "fits", id="huge-number"),
        pytest.param([RUN_RECORD, {**STEP, "intervals": [0.1]}], "no pair of edges", id="half-an-interval"),
        pytest.param([RUN_RECORD, {**STEP, "intervals": [0, 1.5]}], "no pair of edges", id="edge-beyond-1"),
        pytest.param([RUN_RECORD, {**STEP, "intervals": [0, "1"]}], "no pair of edges", id="edge-of-text"),
        pytest.param([RUN_RECORD, STEP, STEP], "line 3: node 0.0 stands there twice", id="a-node-twice"),
        pytest.param([RUN_RECORD, "[" * 100_000 + "\n"], "line 2", id="deep-nesting"),
        pytest.param([{**RUN_RECORD, "version": "1"}], "version", id="version-text"),
        pytest.param([{**RUN_RECORD, "version": 99}], "version 99", id="newer-version"),
    ],
)
def test_a_bad_trace_is_refused_by_its_line(tmp_path, lines, message):
    path = write_lines(tmp_path / "t.jsonl", *lines)
    with pytest.raises(TraceError) as caught:
        list(TraceReader(path))
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_line_without_end_is_refused_without_reading_it_whole(tmp_path):
    path = tmp_path / "t.jsonl"
    with open(path, "wb") as file:
        file.write(json.dumps(RUN_RECORD).encode() + b"\n")
        file.truncate(MAX_LINE_BYTES * 4)
    with pytest.raises(TraceError, match="longer than"):
        list(TraceReader(path))


def test_a_missing_trace_is_one_line(tmp_path):
    with pytest.raises(TraceError, match="No such file"):
        list(TraceReader(tmp_path / "none.jsonl"))


def test_intervals_come_back_as_they_were_written(tmp_path):
    path = write_lines(tmp_path / "t.jsonl", RUN_RECORD, {**STEP, "intervals": [0.1234567, 1]})
    assert list(TraceReader(path))[1].intervals == [0.1234567, 1.0]


def test_unknown_fields_are_skipped(tmp_path):
    path = write_lines(
        tmp_path / "t.jsonl", {**RUN_RECORD, "new": 1}, {"kind": "backup", "id": "0", "value": 1, "x": []}
    )
    assert [type(e) for e in TraceReader(path)] == [RunStarted, Backup]


def test_a_number_that_json_lacks_comes_back_as_no_number(tmp_path):
    path = tmp_path / "t.jsonl"
    with TraceWriter(path) as writer:
        writer.write(RunStarted("q", {}))
        writer.write(Backup("0", math.nan))
    _, backup = TraceReader(path)
    assert math.isnan(backup.value)


@pytest.mark.parametrize("path", ["-", "/no/such/folder/t.jsonl", "/dev", "nul\0byte"])
def test_a_path_that_cannot_be_written_is_a_usage_error(path):
    with pytest.raises(UsageError) as caught:
        TraceWriter(path)
    assert caught.value.exit_code == 2


def test_a_trace_that_never_began_leaves_no_file_and_no_damage(tmp_path):
    new, old = tmp_path / "new.jsonl", tmp_path / "old.jsonl"
    old.write_text("precious\n")
    TraceWriter(new).close()
    TraceWriter(old).close()
    assert not new.exists()
    assert old.read_text() == "precious\n"


def test_an_old_trace_is_replaced_by_the_first_event(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text("old\n" * 100)
    with TraceWriter(path) as writer:
        writer.write(RunStarted("q", {}))
    assert len(list(TraceReader(path))) == 1


def test_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch):
    path = tmp_path / "t.jsonl"
    writer = TraceWriter(path)
    writer.write(RunStarted("q", {}))
    real = writer._file

    class Full:
        """Takes ten bytes, then nothing."""

        def __init__(self):
            self.room = 10

        def write(self, data):
            if not self.room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.room, n = 0, real.write(data[: self.room])
            return n

        def __getattr__(self, name):
            return getattr(real, name)

    writer._file = Full()
    with pytest.raises(OSError, match="No space left"):
        writer.write(Backup("0", 1.0))
    writer._file = real
    writer.close()
    reader = TraceReader(path)
    assert len(list(reader)) == 1
    assert not reader.truncated


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_device_can_be_a_trace():
    with TraceWriter("/dev/full") as writer, pytest.raises(OSError, match="No space left"):
        writer.write(RunStarted("q", {}))
