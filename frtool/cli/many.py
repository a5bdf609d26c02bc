"""Runs many searches for the command line: a line on stdout for each, as soon as it is done."""

from __future__ import annotations

import contextlib
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from frtool.config import SearchConfig
from frtool.errors import FrtoolError, UsageError
from frtool.search.events import Ended, Event, RunStarted
from frtool.solving.question import Question
from frtool.trace import TraceWriter
from frtool.view.many import ManyView
from frtool.view.model import TreeModel
from frtool.view.safe import safe_json, safe_line, safe_text

from .errors import FAILED, SOLVED, UNSOLVED, explain
from .lines import Line, LineSource
from .questions import QuestionReader
from .result import result_record, status
from .searching import Output
from .stop import Stopper
from .traces import TraceFolder

if TYPE_CHECKING:
    from frtool.solving.many import Attempt, Many

# Seconds between the ticks of a search that is traced: a tick counts the blocks of the whole pool.
_TICK_SECONDS = 1.0


def answer_all(configure: Callable[[], SearchConfig], path: Path, output: Output) -> int:
    """Search for every problem of the file and return the exit status.

    130 interrupted, 1 some problem failed, 3 some was not solved, 0 all were answered. Raises FrtoolError for what
    concerns them all: a call, an input or a model that cannot work.
    """
    if output.picture is not None:
        raise UsageError("--picture draws one tree, and --input asks for many", hint="--trace keeps them all")
    stdout = sys.stdout
    if stdout is None:
        raise FrtoolError("there is no stdout")
    with contextlib.ExitStack() as stack:
        # What a library prints is talk: stdout bears the answers alone.
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        if not output.verbose:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        stopper = stack.enter_context(Stopper())
        source = stack.enter_context(LineSource(path))
        try:
            config = configure()
            traces = stack.enter_context(TraceFolder(output.trace)) if output.trace is not None else None
            first = _first(source)
            view = stack.enter_context(ManyView(quiet=output.quiet, progress=output.progress))
            run = _Run(_Results(stdout, view, output), traces, stopper)
            run.all(config, source, first)
        except KeyboardInterrupt:
            return stopper.status
        return stopper.status if stopper.signal is not None else run.results.status


def _first(source: LineSource) -> Line:
    """The first line, before a model loads. Raises UsageError where there is none."""
    while not source.over:
        line = source.take(wait=True)
        if line is not None:
            return line
    raise UsageError(f"{source.name} holds no problems", hint="it takes a prompt a line, or a JSON object")


class _Run:
    def __init__(self, results: _Results, traces: TraceFolder | None, stopper: Stopper) -> None:
        self.results = results
        self._traces = traces
        self._stopper = stopper
        self._open: dict[Attempt, tuple[TreeModel, TraceWriter | None]] = {}

    def all(self, config: SearchConfig, source: LineSource, first: Line) -> None:
        from frtool.solving.many import Many

        results = self.results
        many = Many.open(config, on_progress=results.view.progress, on_config=results.show_config)
        self._stopper.attach(many.interrupt)
        if self._stopper.signal is not None:
            many.interrupt()
        tick_seconds = float("inf") if self._traces is None else _TICK_SECONDS
        with contextlib.closing(many.run(self._questions(many, source, first), tick_seconds=tick_seconds)) as events:
            for attempt, event in events:
                self._consume(attempt, event)
                results.view.look(many.active)

    def _questions(self, many: Many, source: LineSource, first: Line) -> Iterator[Question | None]:
        reader = QuestionReader()
        line: Line | None = first
        while True:
            if line is not None:
                try:
                    question = reader.read(line)
                except UsageError as error:
                    self.results.fail(line.number, error)
                else:
                    yield question
            elif source.over:
                return
            else:
                yield None
            line = source.take(wait=not many.active)

    def _consume(self, attempt: Attempt, event: Event) -> None:
        if isinstance(event, RunStarted):
            writer = None if self._traces is None else self._traces.begin(attempt.question.id)
            self._open[attempt] = TreeModel(), writer
        model, writer = self._open.get(attempt, (TreeModel(), None))
        model.apply(event)
        if writer is not None and self._traces is not None:
            self._traces.write(writer, event)
        if isinstance(event, Ended):
            self._open.pop(attempt, None)
            if writer is not None and self._traces is not None:
                self._traces.end(writer)
            failure = attempt.failure(event)
            if failure is not None:
                self.results.fail(attempt.question.id, failure, attempt.error)
            else:
                self.results.add(attempt.question.id, model, event, None if writer is None else writer.path)


class _Results:
    """Writes a line for each problem; `status` is the exit status of them all."""

    def __init__(self, stdout: TextIO, view: ManyView, output: Output) -> None:
        self.view = view
        self._stdout = stdout
        self._json = output.json
        self._verbose = output.verbose
        self._statuses: set[int] = set()
        reconfigure = getattr(stdout, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")

    @property
    def status(self) -> int:
        if self._statuses <= {SOLVED}:
            return SOLVED
        return UNSOLVED if self._statuses <= {SOLVED, UNSOLVED} else FAILED

    def show_config(self, config: SearchConfig) -> None:
        if self._verbose:
            self.view.say("configuration " + safe_json(config.record()))

    def add(self, id: str | int | None, model: TreeModel, ended: Ended, trace: Path | None) -> None:
        code = status(ended)
        record = {"id": id, "status": code, **result_record(model)}
        for name in ("tree", "model", "config", "frtool"):  # the same for all, or in the trace
            record.pop(name)
        if trace is not None:
            record["trace"] = str(trace)
        self.view.add(code, ended)
        self._write(id, code, record, ended.answer or "")

    def fail(self, id: str | int | None, error: FrtoolError, cause: Exception | None = None) -> None:
        if self._verbose and cause is not None and not isinstance(cause, FrtoolError):
            traceback.print_exception(cause)
        code = explain(error).exit_code
        self.view.fail(f"{safe_line(str(id), 80)}: {safe_line(error.message, 2000)}")
        self._write(id, code, {"id": id, "status": code, "error": error.message, "hint": error.hint}, "")

    def _write(self, id: str | int | None, code: int, record: dict[str, Any], answer: str) -> None:
        self._statuses.add(code)
        line = safe_json(record) if self._json else f"{_column(str(id))}\t{_column(answer)}"
        self._stdout.write(line + "\n")
        self._stdout.flush()


def _column(text: str) -> str:
    """The text as a column of a line: runs of white space are one blank."""
    return safe_text(" ".join(text.split()))
