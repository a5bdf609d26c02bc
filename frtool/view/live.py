"""The tree as it grows, redrawn in place on a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from frtool.search.events import Ended, Event, RunStarted

from .draw import draw
from .glyphs import ASCII, DIM, glyphs_for
from .line import Line, Picture
from .model import TreeModel
from .report import report
from .safe import safe_line

FRAME_SECONDS = 0.1
SHARE = 0.02
"""Of the run's time that drawing may take: a slow terminal gets fewer frames, not a slower search."""


class LiveView:
    """Draws at most ten frames a second, fewer where a frame is dear. `show` is cheap between frames."""

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.console = console
        self.model = TreeModel()
        self.frames = 0
        self.drawing_seconds = 0.0
        self.footer = ""
        """A line below the picture, for whoever drives the view."""
        self._clock = clock
        self._live: Live | None = None
        self._spinner: Spinner | None = None
        self._size = console.size
        self._next = 0.0
        self._glyphs = glyphs_for(console.encoding)

    def __enter__(self) -> LiveView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def progress(self, text: str) -> None:
        """What the program does before the first event: a spinner with words."""
        words = Text(safe_line(text), no_wrap=True, overflow="ellipsis")
        if self._spinner is not None:
            self._spinner.update(text=words)
            return
        self._spinner = Spinner("line" if self._glyphs is ASCII else "dots", words, style="cyan")
        self._live = Live(self._spinner, console=self.console, transient=True, refresh_per_second=8)
        self._live.start()

    def say(self, text: Text) -> None:
        """A line above the picture."""
        self.console.print(text)

    def show(self, event: Event) -> None:
        self.model.apply(event)
        if isinstance(event, RunStarted):
            self._stop()
            self._start()
        elif isinstance(event, Ended):
            self._stop()
            self._finish()
            return
        if self._live is not None and self._clock() >= self._next:
            self._draw()

    def refresh(self) -> None:
        """Draw the model as it is now, due or not."""
        if self._live is not None and self.model.run is not None:
            self._draw()

    def _start(self) -> None:
        self._size = self.console.size
        self._live = Live(console=self.console, auto_refresh=False, transient=True, vertical_overflow="crop")
        self._live.start()

    def _stop(self) -> None:
        live, self._live, self._spinner = self._live, None, None
        if live is not None:
            live.stop()

    def _draw(self) -> None:
        begin = self._clock()
        size = self.console.size
        if size != self._size:
            # The terminal has wrapped or moved what stands there, nobody can tell how: begin on a clean screen.
            self._stop()
            self.console.clear()
            self._start()
        assert self._live is not None
        footer = [Line((self.footer, DIM)).cut(size.width)] if self.footer else []
        lines = draw(self.model, size.width, size.height - 1 - len(footer), self._glyphs) + footer
        self._live.update(Picture(lines), refresh=True)
        end = self._clock()
        self.frames += 1
        self.drawing_seconds += end - begin
        self._next = begin + max(FRAME_SECONDS, (end - begin) / SHARE)

    def _finish(self) -> None:
        """The last picture and the report stay on the screen."""
        size = self.console.size
        below = report(self.model, self._glyphs)
        taken = (
            sum(len(self.console.render_lines(block)) for block in below) + 3
        )  # a blank line, the answer, the prompt
        room = max(8, min(30, size.height - taken))
        self.console.print(Picture(draw(self.model, size.width, room, self._glyphs)))
        self.console.print()
        for block in below:
            self.console.print(block)
