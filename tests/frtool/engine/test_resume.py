"""Searches that break off anywhere and go on to the tree of the undisturbed run."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from frtool.cli.app import run as frtool
from frtool.config import SearchConfig
from frtool.errors import FrtoolError, UsageError
from frtool.models.load import LoadedModel
from frtool.replay.verify import trusted_config
from frtool.resume import Finished, Unfinished, read_trace
from frtool.search.events import Ended, Event, NodeAdded, Resumed, Tick, to_record
from frtool.search.registry import ALGORITHMS
from frtool.session import Session
from frtool.solving.equipment import Equipment
from frtool.trace import TraceError, TraceReader, TraceWriter

PROMPT = "Make 24 from 4, 5, 6, 10"
OPTIONS = {"beam": {"width": 6, "keep": 3}, "dvts": {"width": 6, "expand": 2}}
CUTS = 6
_CLOCKS_AND_CACHE = (
    "seconds", "kv_peak_blocks", "kv_peak_bytes", "kv_unshared_peak_bytes", "recomputed_tokens", "reused_tokens",
    "poll", "judge_tokens",
)  # fmt: skip


def small_config(algorithm: str = "beam", **changes: Any) -> SearchConfig:
    settings = {"algorithm_options": OPTIONS.get(algorithm, {}), "steps": 30, "device": "cpu", "max_step_tokens": 12}
    return SearchConfig(PROMPT, algorithm=algorithm, **(settings | changes)).resolved()


def lasting(events: list[Event]) -> list[dict[str, Any]]:
    """What two runs of one search have in common: everything but clocks and the state of the cache."""
    records = [to_record(event) for event in events if not isinstance(event, Tick | Resumed)]
    return [{key: value for key, value in r.items() if key not in _CLOCKS_AND_CACHE} for r in records]


class Recorder:
    """Runs searches into a trace, whole or from where the trace ends."""

    def __init__(self, loaded: LoadedModel, path: Path) -> None:
        self.loaded = loaded
        self.path = path

    def open_session(self, config: SearchConfig) -> Session:
        return Session.open(config, loaded=self.loaded)

    def search(self, config: SearchConfig) -> list[Event]:
        with TraceWriter(self.path) as writer:
            return self._write(self.open_session(config).run(), writer)

    def resume(self) -> list[Event]:
        found = read_trace(self.path)
        assert isinstance(found, Unfinished)
        config = trusted_config(self.path, found.record.started, trust_remote_code=False, trust_verify_command=False)
        with TraceWriter(self.path, keep=found.keep) as writer:
            return self._write(self.open_session(config).run(found.record), writer)

    def _write(self, events: Any, writer: TraceWriter) -> list[Event]:
        seen = []
        for event in events:
            writer.write(event)
            seen.append(event)
        return seen

    def read(self) -> list[Event]:
        reader = TraceReader(self.path)
        events = list(reader)
        assert reader.complete
        assert not reader.truncated
        return events


@pytest.fixture
def recorder(tiny, tmp_path, monkeypatch) -> Recorder:
    monkeypatch.setattr("frtool.models.load.load_model", lambda *arguments, **options: tiny)
    return Recorder(tiny, tmp_path / "run.jsonl")


def check_cuts(recorder: Recorder, whole: bytes, cuts: list[int]) -> int:
    """Cut the trace at each place, resume, and compare. Returns how many could be resumed."""
    recorder.path.write_bytes(whole)
    expected = lasting(recorder.read())
    first_line = whole.index(b"\n")
    resumed = 0
    for cut in cuts:
        recorder.path.write_bytes(whole[:cut])
        if cut < first_line:
            with pytest.raises(TraceError):
                read_trace(recorder.path)
            continue
        if isinstance(read_trace(recorder.path), Finished):
            assert cut >= len(whole) - 1
            continue
        known = sum(isinstance(event, NodeAdded) for event in TraceReader(recorder.path))
        events = recorder.resume()
        assert lasting(recorder.read()) == expected, f"cut at byte {cut}"
        assert [e.nodes <= known for e in events if isinstance(e, Resumed)] == [True]
        resumed += 1
    return resumed


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_a_trace_cut_at_any_byte_goes_on_to_the_same_tree(recorder, algorithm):
    recorder.search(small_config(algorithm))
    whole = recorder.path.read_bytes()
    draw = random.Random(algorithm)
    cuts = [draw.randrange(whole.index(b"\n"), len(whole)) for _ in range(CUTS)]
    assert check_cuts(recorder, whole, cuts) >= CUTS - 1


@pytest.mark.parametrize("algorithm", ["beam", "mcts", "best-of-n"])
def test_a_pipelined_engine_goes_on_too(recorder, monkeypatch, algorithm):
    """The decode loop of a GPU, whose passes run ahead, on a CPU, where bits are the same in any batch."""
    options = Equipment.engine_options
    monkeypatch.setattr(Equipment, "engine_options", lambda self: replace(options(self), pipeline=True))
    recorder.search(small_config(algorithm))
    whole = recorder.path.read_bytes()
    check_cuts(recorder, whole, [len(whole) * part // 6 for part in range(1, 6)])


def test_a_token_budget_stops_at_the_same_token(recorder):
    recorder.search(small_config("mcts", steps=None, tokens=220))
    whole = recorder.path.read_bytes()
    assert json.loads(whole.splitlines()[-1])["reason"] == "tokens"
    draw = random.Random(1)
    check_cuts(recorder, whole, [draw.randrange(len(whole)) for _ in range(6)])


@pytest.mark.parametrize("scorer", ["self-eval", "logprob"])
def test_other_scorers_go_on_too(recorder, scorer):
    recorder.search(small_config("beam", scorer=scorer))
    whole = recorder.path.read_bytes()
    check_cuts(recorder, whole, [len(whole) * part // 6 for part in range(1, 6)])


def test_a_search_that_is_cut_again_and_again_ends_the_same(recorder):
    recorder.search(small_config("mcts"))
    whole = recorder.path.read_bytes()
    expected = lasting(recorder.read())
    size = whole.index(b"\n") + 1
    for part in (4, 3, 2):
        data = recorder.path.read_bytes()
        recorder.path.write_bytes(data[: max(size, len(data) - len(data) // part)])
        if isinstance(read_trace(recorder.path), Unfinished):
            recorder.resume()
    assert lasting(recorder.read()) == expected
    assert sum(isinstance(event, Resumed) for event in recorder.read()) >= 1


def test_a_tail_of_zero_bytes_as_a_power_loss_leaves_it_is_cut_off(recorder):
    recorder.search(small_config())
    whole = recorder.path.read_bytes()
    expected = lasting(recorder.read())
    lines = whole.splitlines(keepends=True)
    recorder.path.write_bytes(b"".join(lines[: len(lines) // 2]) + bytes(4096))
    recorder.resume()
    assert lasting(recorder.read()) == expected


def test_an_interrupted_search_goes_on(recorder):
    whole = recorder.search(small_config("mcts"))
    session = recorder.open_session(small_config("mcts"))
    with TraceWriter(recorder.path) as writer:
        for event in session.run():
            writer.write(event)
            if isinstance(event, NodeAdded) and event.id == "0.2":
                session.interrupt()
    assert isinstance(event, Ended)
    assert event.reason == "interrupted"
    recorder.resume()
    assert lasting(recorder.read()) == lasting(whole)
    assert [e.reason for e in recorder.read() if isinstance(e, Resumed)] == ["interrupted"]


def test_a_search_that_ran_out_of_memory_goes_on_where_there_is_more(recorder, monkeypatch):
    whole = recorder.search(small_config("beam"))
    session = recorder.open_session(small_config("beam"))
    allocator = session.engine.allocator
    left = 20
    append = allocator.append_many

    def scarce(*arguments: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            from frtool.kernels.allocator import OutOfBlocks

            raise OutOfBlocks(1, 0)
        return append(*arguments)

    monkeypatch.setattr(allocator, "append_many", scarce)
    with TraceWriter(recorder.path) as writer:
        for event in session.run():
            writer.write(event)
    assert event.reason == "memory"
    allocator.check()
    monkeypatch.undo()
    recorder.resume()
    assert lasting(recorder.read()) == lasting(whole)


def test_a_run_that_is_stopped_before_it_gets_anywhere_leaves_the_trace_as_it_was(recorder):
    recorder.search(small_config())
    data = recorder.path.read_bytes()[:-2000]
    recorder.path.write_bytes(data)
    found = read_trace(recorder.path)
    session = recorder.open_session(small_config())
    session.interrupt()
    with TraceWriter(recorder.path, keep=found.keep) as writer:
        for event in session.run(found.record):
            writer.write(event)
    assert recorder.path.read_bytes() == data


def cut_trace(recorder: Recorder, settings: SearchConfig, **started: Any) -> None:
    """A trace that ends at three quarters, its first line changed."""
    recorder.search(settings)
    lines = recorder.path.read_text().splitlines(keepends=True)
    first = json.loads(lines[0])
    for key, value in started.items():
        if isinstance(value, dict):
            first[key] |= value
        else:
            first[key] = value
    recorder.path.write_text("".join([json.dumps(first) + "\n", *lines[1 : 3 * len(lines) // 4]]))


@pytest.mark.parametrize("name", ["name", "weights", "device", "dtype", "torch", "frtool", "capability"])
def test_another_model_machine_or_version_is_refused_by_name(recorder, name):
    cut_trace(recorder, small_config(), model={name: "another"})
    data = recorder.path.read_bytes()
    with pytest.raises(UsageError, match=rf"{name} is .*was 'another'") as error:
        recorder.resume()
    assert error.value.hint
    assert recorder.path.read_bytes() == data


def test_another_configuration_is_noticed_and_the_trace_left_alone(recorder, capsys):
    cut_trace(recorder, small_config("mcts"), config={"max_depth": 1})
    data = recorder.path.read_bytes()
    assert frtool(["resume", str(recorder.path), "-q"]) == 1
    assert "does not go on as it was recorded" in capsys.readouterr().err
    assert recorder.path.read_bytes() == data


def test_tokens_that_give_another_text_are_noticed(recorder, capsys):
    recorder.search(small_config())
    text = recorder.path.read_text()
    lines = text.splitlines(keepends=True)[:-4]
    lines = [line.replace('"token_ids": [', '"token_ids": [9, ', 1) for line in lines]
    recorder.path.write_text("".join(lines))
    assert frtool(["resume", str(recorder.path), "-q"]) == 1
    assert "another text" in capsys.readouterr().err


def test_an_older_trace_is_shown_but_not_resumed(recorder, capsys):
    cut_trace(recorder, small_config(), version=1)
    assert frtool(["show", str(recorder.path)]) == 0
    capsys.readouterr()
    assert frtool(["resume", str(recorder.path)]) == 1
    assert "version 1" in capsys.readouterr().err


def test_a_program_that_a_trace_names_is_not_run_unasked(recorder, capsys, tmp_path):
    proof = tmp_path / "proof"
    cut_trace(recorder, small_config(), config={"verify": "command", "verify_command": f"touch {proof}"})
    for command in (["resume"], ["replay", "--verify"]):
        assert frtool([*command, str(recorder.path)]) == 2
        assert "--trust-verify-command" in capsys.readouterr().err
    assert not proof.exists()


def test_a_finished_search_gives_its_answer_again(recorder, capsys):
    events = recorder.search(small_config("beam", steps=60, algorithm_options={"width": 8, "keep": 3}))
    data = recorder.path.read_bytes()
    status = frtool(["resume", str(recorder.path)])
    out, err = capsys.readouterr()
    assert out.strip() == (events[-1].answer or "")
    assert status == (3 if events[-1].answer is None or events[-1].verified is False else 0)
    assert "had ended" in err
    assert recorder.path.read_bytes() == data


def test_a_trace_that_is_being_written_is_not_taken(recorder):
    recorder.search(small_config())
    with TraceWriter(recorder.path), pytest.raises(UsageError, match="another process"):
        TraceWriter(recorder.path)


@pytest.mark.parametrize("data", [b"", b'{"kind": "run", "pro', b"\x00" * 100, b"no trace at all\n"])
def test_what_is_no_trace_is_refused_in_one_line(recorder, data, capsys):
    recorder.path.write_bytes(data)
    assert frtool(["resume", str(recorder.path)]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_a_failure_of_the_session_is_no_traceback(recorder, monkeypatch, capsys):
    cut_trace(recorder, small_config())

    def fail(*arguments: Any, **options: Any) -> Any:
        raise FrtoolError("the weights have gone")

    monkeypatch.setattr("frtool.session.Session.open", fail)
    assert frtool(["resume", str(recorder.path)]) == 1
    assert "the weights have gone" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("algorithm", ["beam", "mcts", "best-of-n"])
def test_on_a_gpu_a_search_goes_on_to_its_end_with_all_that_was_recorded(loaded_model, tmp_path, algorithm):
    """The steps under way at the cut may round differently in a batch of another size: what came before may not."""
    shape = {"hidden_size": 256, "num_attention_heads": 4, "head_dim": 64, "sharpness": 0.05}
    loaded = loaded_model(device="cuda", dtype=torch.bfloat16, **shape)
    recorder = Recorder(loaded, tmp_path / "run.jsonl")
    config = small_config(algorithm, device="cuda")
    recorder.search(config)
    whole = recorder.path.read_bytes()
    ended = recorder.read()[-1]
    for part in range(1, 6):
        recorder.path.write_bytes(whole[: whole.index(b"\n") + len(whole) * part // 7])
        recorded = [line for line in recorder.path.read_bytes().split(b"\n")[:-1] if b'"kind": "node"' in line]
        recorder.resume()
        assert recorder.path.read_bytes().split(b"\n")[0] == whole.split(b"\n")[0]
        assert set(recorded) <= set(recorder.path.read_bytes().split(b"\n"))
        assert recorder.read()[-1].reason in {"finished", "exhausted", "steps", "simulations", ended.reason}
