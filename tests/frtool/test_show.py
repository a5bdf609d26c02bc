"""Every form in which a recorded search is shown, and what it makes of hostile text and of files that are no trace."""

from __future__ import annotations

import html.parser
import json
import re
import subprocess
import sys
import xml.dom.minidom
from collections.abc import Callable
from pathlib import Path

import pytest

from frtool.cli.app import run
from frtool.cli.show import FORMATS
from frtool.export.recorded import event_seconds, read_search
from frtool.search.events import Ended, Event, NodeAdded, RunStarted, Tick
from frtool.trace import TraceWriter

HOSTILE = (
    "</script><script>alert(1)</script>\x1b]8;;http://evil\x07x\u202e\u2028\"';\n```\n]]>--><b>&amp; `x` | $1 {{data}}"
)


def write(path: Path, events: list[Event]) -> Path:
    with TraceWriter(path) as writer:
        for event in events:
            writer.write(event)
    return path


@pytest.fixture
def trace(tmp_path: Path, make_events: Callable[..., list[Event]]) -> Path:
    return write(tmp_path / "run.jsonl", make_events(nodes=60))


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    info = {"name": HOSTILE, "device": HOSTILE, "dtype": HOSTILE, HOSTILE: HOSTILE}
    return write(
        tmp_path / "hostile.jsonl",
        [
            RunStarted(HOSTILE, {"algorithm": HOSTILE, "model": HOSTILE}, info, 3),
            NodeAdded("0.0", HOSTILE, 5, -1.0, 0.5, 0.5, "end", HOSTILE, None),
            Ended("failed: " + HOSTILE, "0.0", HOSTILE, 0.5, nodes=1, terminals=1),
        ],
    )


def frtool(capfd: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    status = run([str(a) for a in argv])
    captured = capfd.readouterr()
    return status, captured.out, captured.err


def data_of(page: str) -> dict:
    match = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
    assert match is not None
    return json.loads(match[1])


class Elements(html.parser.HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_tree_shows_every_node_and_the_report(trace, capfd):
    status, out, err = frtool(capfd, "show", trace)
    search = read_search(trace)
    assert status == 0
    assert err == ""
    assert sum(len(line.split()) > 3 for line in out.splitlines()) >= sum(1 for _ in search.model.walk())
    assert "KV peak" in out
    assert "\x1b" not in out


def test_lines_fold_the_tree(trace, capfd):
    whole = frtool(capfd, "show", trace)[1]
    folded = frtool(capfd, "show", trace, "--lines", "12")[1]
    assert "more" in folded
    assert len(folded.splitlines()) < len(whole.splitlines()) - 20


@pytest.mark.parametrize("chosen", FORMATS)
def test_output_is_what_stdout_would_have_been_and_follows_the_suffix(trace, tmp_path, capfd, chosen):
    file = tmp_path / f"out{FORMATS[chosen][0]}"
    status, out, err = frtool(capfd, "show", trace, "--output", file)
    assert (status, out, err) == (0, "", "")
    shown = frtool(capfd, "show", trace, "--format", chosen)[1]
    if chosen == "tree":
        assert [w for w in file.read_text().split() if w.isalnum()] == [w for w in shown.split() if w.isalnum()]
    else:
        assert file.read_text() == shown


def test_json_is_the_record_of_search(trace, capfd):
    record = json.loads(frtool(capfd, "show", trace, "--format", "json")[1])
    search = read_search(trace)
    assert record["complete"] is True
    assert record["answer"] == search.ended.answer
    assert record["tree"]["text"] == search.run.prompt


def test_page_holds_every_event_and_loads_nothing(trace, capfd):
    page = frtool(capfd, "show", trace, "--format", "html")[1]
    search = read_search(trace)
    data = data_of(page)
    assert len(data["events"]) == len(data["seconds"]) == len(search.events)
    assert "Content-Security-Policy" in page
    tags = Elements(page).tags
    assert not [
        tag for tag, attributes in tags if "src" in attributes or "href" in attributes or tag in ("link", "img")
    ]
    assert not re.search(
        r"\burl\(|@import|\bfetch\(|XMLHttpRequest|innerHTML|outerHTML|insertAdjacentHTML|\beval\(", page
    )


def test_policy_admits_exactly_the_script_and_style_of_the_page(trace, capfd):
    import base64
    import hashlib

    page = frtool(capfd, "show", trace, "--format", "html")[1]
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        text = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text[-1].encode()).digest()).decode()
        assert len(text) == 1
        assert f"{directive} 'sha256-{digest}'" in page


def test_hostile_text_stays_inside_the_data_of_the_page(hostile, trace, capfd):
    page = frtool(capfd, "show", hostile, "--format", "html")[1]
    assert "<script>alert" not in page
    assert "\u202e" not in page
    assert "\u2028" not in page
    assert "\x1b" not in page
    harmless = frtool(capfd, "show", trace, "--format", "html")[1]
    assert [t for t, _ in Elements(page).tags] == [t for t, _ in Elements(harmless).tags]
    text = data_of(page)["events"][1]["text"]
    assert text.startswith("</script><script>alert(1)</script>\\x1b]8;;")
    assert "{{data}}" in text


def test_hostile_text_is_inert_in_every_other_form(hostile, capfd):
    out = {name: frtool(capfd, "show", hostile, "--format", name)[1] for name in FORMATS if name != "html"}
    for name, text in out.items():
        assert not set(text) & set("\x1b\x07\u202e\u2028"), name
    xml.dom.minidom.parseString(out["svg"])
    for line in out["mermaid"].splitlines()[1:3]:
        assert re.fullmatch(r'  (n\d+\["[\w ,.+=()/?#;<>-]*"\]:::\w+|n\d+ ==> n\d+)', line), line
        assert "<script" not in line
    label = re.search(r'n0 \[label="((?:[^"\\]|\\.)*)", color=', out["dot"])
    assert label is not None
    assert "\n````text\n</script>" in out["md"]  # a fence longer than any in the text
    assert "\\<script\\>" in out["md"]


def test_graphs_have_one_parent_a_node_and_fold_the_rest(trace, capfd):
    dot = frtool(capfd, "show", trace, "--format", "dot")[1]
    assert dot.count(" -> ") == dot.count("[label=") - 1 == len(list(read_search(trace).model.walk())) - 1
    mermaid = frtool(capfd, "show", trace, "--format", "mermaid", "--lines", "20")[1]
    assert mermaid.count('["') <= 20
    assert len(re.findall(r"(?:-->|==>)", mermaid)) == mermaid.count('["') - 1
    assert "more" in mermaid


def test_markdown_gives_question_answer_steps_and_figures(trace, capfd):
    text = frtool(capfd, "show", trace, "--format", "md")[1]
    ended = read_search(trace).ended
    assert "Make 24 from 4, 5, 6, 10" in text
    assert f"\n{ended.answer}\n" in text
    assert "| nodes | 60 |" in text


def test_cut_trace_is_shown_as_far_as_it_goes_with_a_warning(trace, tmp_path, capfd):
    cut = tmp_path / "cut.jsonl"
    cut.write_bytes(trace.read_bytes()[: trace.stat().st_size // 2])
    for name in FORMATS:
        status, out, err = frtool(capfd, "show", cut, "--format", name)
        assert status == 0, name
        assert out
        assert err == "warning: the trace breaks off before the search's end\n"
    record = json.loads(frtool(capfd, "show", cut, "--format", "json")[1])
    assert record["complete"] is False
    assert record["reason"] == "unfinished"
    assert 0 < record["nodes"] < 60


def test_trace_of_a_run_that_never_got_a_node_is_shown(tmp_path, capfd):
    path = write(tmp_path / "bare.jsonl", [RunStarted("why?", {}, {}, 0)])
    for name in FORMATS:
        status, out, _ = frtool(capfd, "show", path, "--format", name)
        assert status == 0, name
        assert "why" in out


def bad(tmp_path: Path, name: str, trace: Path) -> Path:
    path = tmp_path / f"{name}.jsonl"
    match name:
        case "missing":
            return path
        case "empty":
            path.touch()
        case "directory":
            path.mkdir()
        case "garbage":
            path.write_bytes(bytes(range(256)) * 50)
        case "other-json":
            path.write_text('{"hello": "world"}\n')
        case "newer":
            path.write_text(json.dumps({"kind": "run", "prompt": "x", "config": {}, "version": 99}) + "\n")
        case "damaged":
            lines = trace.read_bytes().splitlines(keepends=True)
            path.write_bytes(b"".join([*lines[:5], b'{"kind": "node", oops\n', *lines[5:]]))
        case "name\n\x1b[2Jescape":
            return path
        case _:
            path.write_text("just some words\n")
    return path


@pytest.mark.parametrize(
    "name",
    ["missing", "empty", "directory", "garbage", "other-json", "newer", "damaged", "words", "name\n\x1b[2Jescape"],
)
def test_what_is_no_trace_gets_one_line(name, trace, tmp_path, capfd):
    status, out, err = frtool(capfd, "show", bad(tmp_path, name, trace))
    lines = err.splitlines()
    assert status == 1
    assert out == ""
    assert lines[0].startswith("error: ")
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("hint: "))
    assert "\x1b" not in err


@pytest.mark.parametrize(
    "argv",
    [
        ["--format", "pdf"],
        ["--output", "."],
        ["--output", "no/such/folder/x.html"],
        ["--output", "x.unknown"],
        ["--output", "x"],
        ["--lines", "0"],
        ["--format", "html", "--lines", "3"],
        ["more", "arguments"],
        ["--speed", "2"],
    ],
)
def test_bad_call_is_a_usage_error_and_writes_nothing(argv, trace, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    status, out, err = frtool(capfd, "show", trace, *argv)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert sorted(tmp_path.iterdir()) == before


def test_output_that_fails_leaves_the_old_file(trace, tmp_path, capfd, monkeypatch):
    old = tmp_path / "x.html"
    old.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    status, _, err = frtool(capfd, "show", trace, "--output", old)
    assert status == 1
    assert "No space left on device" in err
    assert old.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_output_may_be_a_device(trace, capfd):
    assert frtool(capfd, "show", trace, "--format", "json", "--output", "/dev/null")[0] == 0
    assert Path("/dev/null").is_char_device()


def test_closed_pipe_ends_quietly(trace):
    script = f"{sys.executable} -m frtool show {trace} --format json | head -c 10"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


def test_seconds_never_decrease_and_meet_the_ticks(make_events):
    events = make_events(nodes=60)
    seconds = event_seconds(events)
    assert seconds == sorted(seconds)
    ticks = [(e.seconds, s) for e, s in zip(events, seconds, strict=True) if isinstance(e, Tick | Ended)]
    assert ticks
    assert all(t == s for t, s in ticks)


def test_seconds_of_a_clock_that_jumps_back_stay_in_order():
    ticks = [Tick(s, 1, 0, 1, 1, 1, 1, 1, 1, 1) for s in (1.0, 0.5, float("nan"), 2.0)]
    seconds = event_seconds([RunStarted("x", {}), *ticks])
    assert seconds == sorted(seconds)
    assert seconds[-1] == 2.0
