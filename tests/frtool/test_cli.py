"""What the command line prints where, and with which exit status."""

from __future__ import annotations

import errno
import inspect
import io
import json
import os
import signal
import subprocess
import sys
import types
import xml.dom.minidom
from dataclasses import fields

import pytest

from frtool import __version__
from frtool.cli.app import run
from frtool.cli.search import search
from frtool.config import SearchConfig
from frtool.search.events import Ended, NodeAdded, RunStarted
from frtool.search.registry import ALGORITHMS
from frtool.trace import TraceReader
from frtool.view.quiet import QuietView

PUZZLE = "Make 24 from 4, 5, 6, 10"


@pytest.fixture(autouse=True)
def no_pipe_on_stdin(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))


def frtool(capfd, *argv: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of one command."""
    status = run(argv)
    captured = capfd.readouterr()
    return status, captured.out, captured.err


def one_error(err: str) -> str:
    """The one `error:` line, after which there is at most one `hint:` line."""
    lines = [line for line in err.splitlines() if not line.startswith("frtool: ")]
    assert "Traceback" not in err
    assert lines[0].startswith("error: "), err
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("hint: ")), err
    return lines[0]


def run_python(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)


def test_help_imports_little_besides_what_draws_it():
    """What it takes its time for. Seconds are not held here: they are the machine's, too."""
    script = (
        "import sys; from frtool.cli.app import run; run(['--help']); "
        "print(*{m.split('.')[0] for m in sys.modules} - set(sys.stdlib_module_names), file=sys.stderr); "
        "print(*(m for m in sys.modules if m.startswith(('frtool', 'rich.live'))), file=sys.stderr)"
    )
    done = run_python(script)
    packages, modules = (set(line.split()) for line in done.stderr.splitlines())
    drawing = {"typer", "click", "shellingham", "annotated_doc", "rich"}
    assert {name for name in packages if not name.startswith("_")} <= {"frtool", *drawing}
    assert "rich.live" not in modules
    assert len(modules) < 42
    assert "search" in done.stdout


def test_after_help_markdown_and_tracebacks_are_there_whole():
    script = (
        "from frtool.cli.app import run; run(['--help']); from rich.console import Console; "
        "from rich.markdown import Markdown; from rich.traceback import Traceback; "
        "Console().print(Markdown('# ti*t*le')); print(Traceback.extract)"
    )
    assert "title" in run_python(script).stdout.splitlines()[-2]


def test_version(capfd):
    assert frtool(capfd, "--version") == (0, f"frtool {__version__}\n", "")


def test_search_help_names_every_algorithm_and_option(capfd):
    status, out, _ = frtool(capfd, "search", "--help")
    assert status == 0
    for name, options in ALGORITHMS.items():
        assert name in out
        assert all(option in out for option in options)


def test_every_setting_has_an_option_with_the_same_default():
    parameters = inspect.signature(search).parameters
    for item in fields(SearchConfig):
        if item.name not in ("prompt", "algorithm_options"):
            assert parameters[item.name].default == item.default, item.name


def test_every_algorithm_flag_is_an_option_of_some_algorithm():
    known = {name for options in ALGORITHMS.values() for name in options}
    assert {"n", "width", "keep", "expand"} <= known


@pytest.mark.usefixtures("fake_session")
class TestResults:
    def test_only_the_answer_is_on_stdout(self, capfd):
        status, out, err = frtool(capfd, "search", PUZZLE + " noisy")
        assert status == 0
        assert len(out.splitlines()) == 1
        assert "a library talks" in err
        assert "tokens sampled" in err
        assert "KV peak" in err

    def test_quiet_leaves_stderr_empty(self, capfd):
        status, out, err = frtool(capfd, "search", PUZZLE, "--quiet")
        assert status == 0
        assert out
        assert err == ""

    def test_no_progress_leaves_the_report(self, capfd, monkeypatch):
        _, _, err = frtool(capfd, "search", PUZZLE, "--no-progress")
        assert "frtool:" not in err
        assert "tokens sampled" in err
        monkeypatch.setenv("FRTOOL_NO_PROGRESS", "1")
        assert "frtool:" not in frtool(capfd, "search", PUZZLE)[2]

    def test_pipes_get_no_escape_sequences(self, capfd, monkeypatch):
        monkeypatch.setenv("FORCE_COLOR", "1")
        _, out, err = frtool(capfd, "search", PUZZLE)
        assert "\x1b" not in out
        assert "\x1b[?25l" not in err  # colour was asked for, cursor movement was not
        assert "\x1b[1A" not in err

    def test_a_refused_answer_is_status_3(self, capfd):
        status, out, err = frtool(capfd, "search", "unsolved", "-a", "greedy")
        assert status == 3
        assert out.strip()
        assert "not solved" in err

    def test_a_failure_in_the_middle_keeps_the_trace(self, capfd, tmp_path):
        path = tmp_path / "t.jsonl"
        status, _, err = frtool(capfd, "search", "broken", "-q", "--trace", str(path))
        assert status == 1
        assert one_error(err) == "error: the weights have gone"
        assert len(list(TraceReader(path))) == 20

    def test_an_interrupt_that_ends_the_events_leaves_a_whole_trace_all_the_same(self, capfd, tmp_path):
        path = tmp_path / "t.jsonl"
        status, out, _ = frtool(capfd, "search", "torn", "-q", "--json", "--trace", str(path))
        assert status == json.loads(out)["status"] == 130
        reader = TraceReader(path)
        events = list(reader)
        assert reader.complete
        assert events[-1].reason == json.loads(out)["reason"] == "interrupted"

    def test_a_signal_ends_the_search_though_the_terminal_fails_as_it_comes(self, capfd, tmp_path, monkeypatch):
        class Vanishing(QuietView):
            def show(self, event):
                super().show(event)
                if len(self.model.nodes) == 8 and not isinstance(event, Ended):
                    try:
                        signal.raise_signal(signal.SIGTERM)
                    finally:
                        raise OSError(errno.EIO, "gone")

        monkeypatch.setattr("frtool.cli.searching.view_for", lambda **options: Vanishing())
        path = tmp_path / "t.jsonl"
        status, out, _ = frtool(capfd, "search", PUZZLE, "--json", "--trace", str(path))
        assert status == json.loads(out)["status"] == 128 + signal.SIGTERM
        events = list(TraceReader(path))
        assert events[-1].reason == json.loads(out)["reason"] == "interrupted"
        assert sum(isinstance(event, NodeAdded) for event in events) == 7

    def test_a_model_that_fails_is_status_1(self, capfd):
        status, out, err = frtool(capfd, "search", "refused")
        assert (status, out) == (1, "")
        assert one_error(err) == "error: the model is no model"
        assert "hint: take another" in err

    def test_the_unexpected_is_one_line_too(self, capfd):
        status, _, err = frtool(capfd, "search", "crash")
        assert status == 1
        assert "unexpected ZeroDivisionError" in one_error(err)
        assert "Traceback" in frtool(capfd, "search", "crash", "-v")[2]

    def test_json_has_everything(self, capfd):
        status, out, _ = frtool(capfd, "search", PUZZLE, "--json", "-a", "beam", "--width", "8", "-o", "keep=2")
        result = json.loads(out)
        assert status == result["status"] == 0
        assert result["config"]["algorithm_options"] == {"width": 8, "keep": "2"}
        assert result["tokens"]["policy"] > 0
        assert result["kv"]["unshared_peak_bytes"] > result["kv"]["peak_bytes"]
        assert result["steps"]
        assert result["tree"]["id"] == "0"
        assert result["tree"]["children"][0]["id"] == "0.0"

    @pytest.mark.parametrize(
        ("argv", "status"),
        [(["unsolved", "-a", "greedy"], 3), (["refused"], 1), (["crash"], 1), (["broken"], 1), (["x", "-o", "y"], 2)],
    )
    def test_json_is_json_whatever_happens(self, capfd, argv, status):
        got, out, err = frtool(capfd, "search", "--json", *argv)
        assert got == json.loads(out)["status"] == status
        if status != 3:
            assert json.loads(out)["error"]
            assert "error: " in err

    @pytest.mark.parametrize("algorithm", ["best-of-n", "beam", "mcts"])
    def test_one_seed_gives_one_tree(self, capfd, algorithm):
        def tree(seed: str):
            return json.loads(frtool(capfd, "search", PUZZLE, "-q", "--json", "-a", algorithm, "--seed", seed)[1])[
                "tree"
            ]

        assert tree("1") == tree("1") != tree("2")

    def test_a_hostile_answer_is_escaped(self, capfd):
        _, out, err = frtool(capfd, "search", "hostile")
        assert out == "\\x1b]8;;http://evil\\x07click\\x1b[2J\\u202e[red]42\n"
        assert not {"\x1b", "\x07", "\u202e"} & set(out + err)
        out = frtool(capfd, "search", "hostile", "--json", "-q")[1]
        assert json.loads(out)["answer"].startswith("\x1b]8;;")
        assert not {"\x1b", "\x07", "\u202e"} & set(out)

    def test_the_picture_is_whole_and_loads_nothing(self, capfd, tmp_path):
        path = tmp_path / "tree.svg"
        assert frtool(capfd, "search", PUZZLE, "-q", "--picture", str(path))[0] == 0
        text = path.read_text()
        xml.dom.minidom.parseString(text)
        assert "url(http" not in text
        assert "beam" in text
        assert [p.name for p in tmp_path.iterdir()] == ["tree.svg"]

    def test_the_trace_is_the_run(self, capfd, tmp_path):
        path = tmp_path / "t.jsonl"
        frtool(capfd, "search", PUZZLE, "-q", "--trace", str(path))
        reader = TraceReader(path)
        events = list(reader)
        assert isinstance(events[0], RunStarted)
        assert isinstance(events[-1], Ended)
        assert reader.complete

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
    def test_a_full_disk_ends_the_search_with_its_answer(self, capfd):
        status, _, err = frtool(capfd, "search", PUZZLE, "--trace", "/dev/full", "-q")
        assert status == 1
        assert one_error(err) == "error: the trace could not be written on: No space left on device"

    @pytest.mark.parametrize("data", [b"Make 24 from 4, 5, 6, 10\n", "\ufeffMake 24 from 4, 5, 6, 10\r\n".encode()])
    @pytest.mark.parametrize("argument", [["-"], []])
    def test_the_prompt_comes_from_a_pipe(self, capfd, monkeypatch, data, argument):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        _, out, _ = frtool(capfd, "search", "--json", "-q", *argument)
        assert json.loads(out)["config"]["prompt"] == PUZZLE

    def test_a_prompt_may_look_like_an_option(self, capfd):
        assert json.loads(frtool(capfd, "search", "--json", "-q", "--", "--help")[1])["config"]["prompt"] == "--help"

    def test_a_delimiter_may_be_written_with_escapes(self, capfd):
        _, out, _ = frtool(capfd, "search", PUZZLE, "--json", "-q", "--delimiter", r"\n\n")
        assert json.loads(out)["config"]["delimiter"] == "\n\n"

    def test_a_prompt_may_stand_in_a_file(self, capfd, tmp_path):
        path = tmp_path / "prompt.txt"
        path.write_bytes(b"\xef\xbb\xbf" + PUZZLE.encode() + b"\r\n")
        _, out, _ = frtool(capfd, "search", "--prompt-file", str(path), "--json", "-q")
        assert json.loads(out)["config"]["prompt"] == PUZZLE

    def test_dash_as_prompt_file_is_stdin(self, capfd, monkeypatch):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(PUZZLE.encode())))
        _, out, _ = frtool(capfd, "search", "--prompt-file", "-", "--json", "-q")
        assert json.loads(out)["config"]["prompt"] == PUZZLE

    def test_sizes_have_units(self, capfd):
        _, out, _ = frtool(capfd, "search", PUZZLE, "--json", "-q", "--kv-memory", "1.5GiB")
        assert json.loads(out)["config"]["kv_memory"] == 3 * 2**29


def never_loaded(*args, **kwargs):
    raise AssertionError("the model was loaded")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        pytest.param(["search", ""], "the prompt is empty", id="empty-prompt"),
        pytest.param(["search", "  \n"], "the prompt is empty", id="blank-prompt"),
        pytest.param(["search"], "the prompt is empty", id="empty-pipe"),
        pytest.param(["search", "Make", "24"], "extra argument", id="unquoted-prompt"),
        pytest.param(["search", "x\udcff"], "not valid UTF-8", id="prompt-not-utf8"),
        pytest.param(["search", PUZZLE, "--tokens", "-5"], "--tokens is -5", id="negative-budget"),
        pytest.param(["search", PUZZLE, "--nodes", "0"], "--nodes is 0", id="no-nodes"),
        pytest.param(["search", PUZZLE, "--seconds", "nan"], "--seconds is nan", id="seconds-nan"),
        pytest.param(["search", PUZZLE, "--tokens", "many"], "--tokens", id="budget-no-number"),
        pytest.param(["search", PUZZLE, "--temperature", "-1"], "--temperature is -1", id="negative-temperature"),
        pytest.param(["search", PUZZLE, "--top-p", "0"], "--top-p is 0", id="top-p-0"),
        pytest.param(["search", PUZZLE, "--algorithm", "magic"], "magic", id="unknown-algorithm"),
        pytest.param(["search", PUZZLE, "-a", "greedy", "--width", "4"], "width", id="option-not-used"),
        pytest.param(["search", PUZZLE, "-a", "mcts", "-o", "c_puct=-1"], "c_puct", id="option-out-of-bounds"),
        pytest.param(["search", PUZZLE, "-o", "c_puct"], "name=value", id="option-without-value"),
        pytest.param(["search", PUZZLE, "--width", "4", "-o", "width=5"], "twice", id="option-twice"),
        pytest.param(["search", PUZZLE, "--scorer", "oracle"], "--scorer", id="unknown-scorer"),
        pytest.param(["search", PUZZLE, "--steer", "--verify", "none"], "--steer", id="contradiction"),
        pytest.param(["search", PUZZLE, "--kv-memory", "lots"], "--kv-memory", id="size-no-size"),
        pytest.param(["search", PUZZLE, "--dtype", "int3"], "--dtype", id="unknown-dtype"),
        pytest.param(["search", PUZZLE, "--delimiter", ""], "--delimiter", id="empty-delimiter"),
        pytest.param(["search", PUZZLE, "--trace", "-"], "--trace", id="trace-to-stdout"),
        pytest.param(["search", PUZZLE, "--trace", "/no/such/t.jsonl"], "cannot write the trace", id="trace-nowhere"),
        pytest.param(["search", PUZZLE, "--trace", "/"], "cannot write the trace", id="trace-is-a-folder"),
        pytest.param(["search", PUZZLE, "--picture", "tree.png"], ".svg", id="picture-not-svg"),
        pytest.param(["search", PUZZLE, "--picture", "/no/such/t.svg"], "cannot write", id="picture-nowhere"),
        pytest.param(["search", PUZZLE, "--nonsense"], "--nonsense", id="unknown-option"),
        pytest.param(
            ["search", "What is the capital of France?"], "arithmetic puzzles", id="not-for-the-embedded-model"
        ),
        pytest.param(["serch", PUZZLE], "serch", id="unknown-command"),
        pytest.param(["search", PUZZLE, "--seconds", "inf"], "seconds", id="endless"),
    ],
)
def test_bad_input_is_one_line_and_status_2(capfd, monkeypatch, argv, words):
    loading = types.ModuleType("frtool.models.load")
    loading.load_model = never_loaded  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "frtool.models.load", loading)
    status, out, err = frtool(capfd, *argv)
    assert (status, out) == (2, "")
    assert words in one_error(err)


def test_the_trace_is_checked_before_the_model_loads_and_left_alone_where_it_fails(capfd, tmp_path, fake_session):
    path = tmp_path / "t.jsonl"
    assert frtool(capfd, "search", "refused", "--trace", str(path))[0] == 1
    assert not path.exists()


@pytest.mark.parametrize("command", [["bench", "allocator"], ["bench", "allocator", "--json"]])
def test_the_allocator_benchmark_prints_its_figures(capfd, command):
    status, out, err = frtool(capfd, *command, "--seconds", "0.01")
    assert (status, err) == (0, "")
    if "--json" in command:
        assert json.loads(out)["rows"][0]["cycles_per_second"] > 0
    else:
        assert "cycles/s" in out
        assert "target" in out


def test_the_attention_benchmark_prints_its_figures(capfd):
    small = [
        "--batch-sizes",
        "2",
        "--prefix",
        "32",
        "--suffix",
        "8",
        "--heads",
        "2",
        "--kv-heads",
        "1",
        "--head-dim",
        "16",
    ]
    status, out, _ = frtool(capfd, "bench", "attention", *small)
    assert status == 0
    assert "speedup" in out
    status, out, _ = frtool(capfd, "bench", "attention", *small, "--baseline", "none", "--json")
    assert status == 0
    assert json.loads(out)["rows"][0]["tree_us"] > 0


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        pytest.param(["bench", "magic"], "magic", id="unknown-benchmark"),
        pytest.param(["bench", "allocator", "--seconds", "-1"], "--seconds is -1", id="negative-time"),
        pytest.param(["bench", "attention", "--batch-sizes", "1,x"], "--batch-sizes", id="batch-no-number"),
        pytest.param(["bench", "attention", "--prefix", "-1"], "--prefix is -1", id="prefix-below-zero"),
        pytest.param(["bench", "attention", "--heads", "7"], "no multiple", id="heads-that-do-not-fit"),
        pytest.param(["bench", "attention", "--baseline", "magic"], "magic", id="unknown-baseline"),
        pytest.param(["bench", "attention", "--device", "abacus"], "abacus", id="unknown-device"),
    ],
)
def test_a_bad_benchmark_call_is_one_line(capfd, argv, words):
    status, out, err = frtool(capfd, *argv)
    assert (status, out) == (2, "")
    assert words in one_error(err)
