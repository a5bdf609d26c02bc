"""Runs one search for the command line: opens the session, feeds the view and the trace, prints the result."""

from __future__ import annotations

import contextlib
import sys
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from frtool.config import SearchConfig
from frtool.errors import FrtoolError, UsageError
from frtool.search.events import Ended, Event
from frtool.search.resume import Mismatch
from frtool.trace import TraceWriter
from frtool.view import view_for
from frtool.view.model import TreeModel
from frtool.view.safe import safe_json, safe_line, safe_text

from .errors import FAILED, complain, explain
from .result import result_record, status
from .stop import Stopper

if TYPE_CHECKING:
    from typing import TextIO

    from frtool.resume import Finished, Unfinished
    from frtool.view import View


@dataclass(frozen=True, slots=True)
class Output:
    """Where the results of a search go."""

    trace: Path | None
    picture: Path | None
    json: bool
    quiet: bool
    progress: bool
    verbose: bool


def answer(configure: Callable[[], SearchConfig], output: Output, unfinished: Unfinished | None = None) -> int:
    """Search, print the answer, and return the exit status. Known failures are printed, not raised.

    With `unfinished` that search goes on, and its trace is the output's.
    """
    stdout = sys.stdout
    view = view_for(quiet=output.quiet, progress=output.progress)
    search = _Search(view, verbose=output.verbose)
    with contextlib.ExitStack() as stack:
        # What a library prints is talk: stdout bears the answer alone.
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        if not output.verbose:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        stopper = stack.enter_context(Stopper())
        error: FrtoolError | None = None
        try:
            config = configure()
            with view, _writers(output, unfinished) as search.trace:
                search.run(config, stopper, unfinished)
                if output.picture is not None:
                    _draw(search.view.model, output.picture)
        except KeyboardInterrupt:
            pass
        except Exception as failure:
            if output.verbose and not isinstance(failure, FrtoolError):
                traceback.print_exc()
            error = explain(failure)
    code = _status(search.view.model.ended, error, stopper)
    if error is not None:
        complain(error)
    return _print(search.view.model, error, code, output, stdout) or code


def answer_again(found: Finished, output: Output) -> int:
    """Print the answer of a search that has ended already, and return its exit status."""
    from frtool.view.console import StderrConsole

    model = TreeModel()
    for event in found.events:
        model.apply(event)
    if not output.quiet:
        with contextlib.suppress(OSError):
            StderrConsole().print(f"the search had ended: {safe_line(found.ended.reason, 60)}", markup=False)
    if output.picture is not None:
        with _writers(replace(output, trace=None), None):
            _draw(model, output.picture)
    code = status(found.ended)
    return _print(model, None, code, output, sys.stdout) or code


class _Search:
    """Hands every event to the trace and to the view, in that order."""

    def __init__(self, view: View, *, verbose: bool) -> None:
        self.view = view
        self._verbose = verbose
        self.trace: TraceWriter | None = None
        self.trace_error: OSError | None = None
        self._stop: Callable[[], None] = lambda: None

    def run(self, config: SearchConfig, stopper: Stopper, unfinished: Unfinished | None) -> None:
        from frtool.session import Session

        session = Session.open(config, on_progress=self._progress, on_config=self._show_config)
        self._stop = session.interrupt
        stopper.attach(session.interrupt)
        events = session.run() if unfinished is None else session.run(unfinished.record)
        told = False
        try:
            for event in events:
                self._consume(event)
                if isinstance(event, Ended):
                    continue
                stopper.check()
                if stopper.signal is not None and not told:
                    told = True
                    self._tell("stopping at the next step; Ctrl-C again stops at once")
        except KeyboardInterrupt:
            self._end_now(events)
            raise
        except Mismatch as error:
            raise FrtoolError(
                f"the search does not go on as it was recorded: {error}",
                hint="the trace was left as it is; `frtool search` begins a new one",
            ) from None
        if self.trace_error is not None:
            reason = self.trace_error.strerror or str(self.trace_error)
            raise FrtoolError(
                f"the trace could not be written on: {reason}",
                hint="the search was ended there; the trace is whole up to its last line",
            )

    def _consume(self, event: Event) -> None:
        if self.trace is not None and self.trace_error is None:
            try:
                self.trace.write(event)
            except OSError as error:
                self.trace_error = error
                self._stop()
        self._guard(lambda: self.view.show(event))

    def _progress(self, text: str) -> None:
        self._guard(lambda: self.view.progress(text))

    def _show_config(self, config: SearchConfig) -> None:
        if self._verbose:
            self._tell("configuration " + safe_json(config.record()))

    def _tell(self, text: str) -> None:
        from rich.text import Text

        self._guard(lambda: self.view.say(Text(text, style="yellow")))

    def _guard(self, draw: Callable[[], None]) -> None:
        """Draw; where that fails, say because the terminal has gone away, the search goes on unseen."""
        try:
            draw()
        except Exception as error:
            from frtool.view.quiet import QuietView

            if self._verbose:
                with contextlib.suppress(OSError):
                    traceback.print_exception(error)
            self.view = QuietView(self.view.model)

    def _end_now(self, events: Iterator[Event]) -> None:
        """Let the search write its last event, where the interrupt fell outside of it."""
        if self.view.model.ended is None and self.view.model.run is not None:
            with contextlib.suppress(KeyboardInterrupt, StopIteration):
                event = cast(Generator[Event, None, None], events).throw(KeyboardInterrupt())
                while True:
                    self._consume(event)
                    event = next(events)
            if self.view.model.ended is None:  # the interrupt had ended the iterator itself
                from frtool.export.recorded import standing

                self._consume(replace(standing(self.view.model), reason="interrupted"))


@contextlib.contextmanager
def _writers(output: Output, unfinished: Unfinished | None) -> Iterator[TraceWriter | None]:
    """Check before the model loads that what was asked for can be written."""
    picture = output.picture
    if picture is not None:
        if picture.suffix.lower() != ".svg":
            raise UsageError(f"--picture {picture} does not end in .svg")
        if not picture.parent.is_dir():
            raise UsageError(f"cannot write the picture {picture}: no such folder")
    if output.trace is None:
        yield None
        return
    with TraceWriter(output.trace, keep=None if unfinished is None else unfinished.keep) as writer:
        yield writer


def _draw(model: TreeModel, path: Path) -> None:
    from frtool.view.picture import write_svg

    write_svg(model, path)


def _status(ended: Ended | None, error: FrtoolError | None, stopper: Stopper) -> int:
    if error is not None:
        return error.exit_code
    if stopper.signal is not None and (ended is None or ended.reason == "interrupted"):
        return stopper.status
    return status(ended)


def _print(model: TreeModel, error: FrtoolError | None, code: int, output: Output, stdout: TextIO | None) -> int:
    """Print the result on stdout; an exit status of its own where that fails, else 0."""
    ended = model.ended
    if output.json:
        record = result_record(model) if model.run is not None else {}
        if error is not None:
            record = {"error": error.message, "hint": error.hint} | record
        elif model.run is None:
            record = {"error": "interrupted before the search began"}
        record = {"status": code} | record
        indent = 2 if stdout is not None and stdout.isatty() else None
        try:
            text = safe_json(record, indent=indent)
        except RecursionError:  # hundreds of levels; readers of JSON could not nest so deep either
            text = safe_json(record | {"tree": None}, indent=indent)
            complain(FrtoolError("the tree is too deep for JSON and was left out", hint="--trace holds it whole"))
    elif ended is not None and ended.answer is not None:
        text = safe_text(ended.answer)
    else:
        return 0
    if stdout is None:
        return FAILED
    reconfigure = getattr(stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
    stdout.write(text + "\n")
    stdout.flush()
    return 0
