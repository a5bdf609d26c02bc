"""Plays the events of a search into the live view, at any speed, forwards and step by step."""

from __future__ import annotations

import time
from collections.abc import Callable

from frtool.search.events import Ended, Event, NodeAdded
from frtool.view.live import FRAME_SECONDS, LiveView
from frtool.view.model import TreeModel

from .keys import Keys, NoKeys

PLAYING_SECONDS = 20.0
_PLAY = "space pause, n/b step, +/- speed, e end, q quit"
_PAUSED = "space play, n/b step, e end, q quit"


def comfortable_speed(seconds: float) -> float:
    """Real time for a short search, and for a long one what plays it in twenty seconds."""
    return max(1.0, seconds / PLAYING_SECONDS)


class Player:
    """`events` with the `seconds` at which they happened, the last of them the search's end."""

    def __init__(
        self,
        view: LiveView,
        events: list[Event],
        seconds: list[float],
        *,
        speed: float,
        keys: Keys | NoKeys,
        paused: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        assert isinstance(events[-1], Ended)
        self.view = view
        self.events = events
        self.seconds = seconds
        self.speed = speed
        self.paused = paused
        self.at = 0
        """Events shown so far."""
        self._keys = keys
        self._clock = clock
        self._now = 0.0

    def play(self) -> None:
        """Show everything up to the end, or up to the key that quits."""
        self._forward(1)
        if self.paused:
            self._step(1)
        last = self._clock()
        while self.at < len(self.events):
            if self.paused:
                self._draw()
                key = self._keys.wait(None)
                last = self._clock()
            else:
                time_, last = self._clock() - last, self._clock()
                self._now += time_ * self.speed
                before = self.at
                while self.at < len(self.events) and self.seconds[self.at] <= self._now:
                    self._forward(1)
                if self.at == len(self.events):
                    return
                if self.at != before or isinstance(self._keys, Keys):
                    self._caption()
                pause = (self.seconds[self.at] - self._now) / self.speed
                if pause > FRAME_SECONDS:
                    self._draw()
                key = self._keys.wait(min(max(pause, 0.0), FRAME_SECONDS))
            if key == "quit":
                return
            if key is not None:
                self._obey(key)

    def _obey(self, key: str) -> None:
        match key:
            case "pause":
                self.paused = not self.paused
            case "on":
                self.paused = True
                self._step(1)
            case "back":
                self.paused = True
                self._step(-1)
            case "faster":
                self.speed = min(self.speed * 2, 1e6)
            case "slower":
                self.speed = max(self.speed / 2, 1e-3)
            case "end":
                self._forward(len(self.events) - self.at)

    def _step(self, direction: int) -> None:
        """To the next event after which there is one more step, or to the one before."""
        at = self.at + direction
        while 1 < at < len(self.events) and not isinstance(self.events[at - 1], NodeAdded):
            at += direction
        if at > self.at:
            self._forward(at - self.at)
        else:
            self._rewind(max(at, 1))
        self._now = self.seconds[self.at - 1]

    def _forward(self, count: int) -> None:
        for event in self.events[self.at : self.at + count]:
            self.at += 1
            self.view.show(event)

    def _rewind(self, at: int) -> None:
        model = TreeModel()
        for event in self.events[:at]:
            model.apply(event)
        self.at = at
        self.view.model = model

    def _draw(self) -> None:
        self._caption()
        self.view.refresh()

    def _caption(self) -> None:
        where = f"event {self.at}/{len(self.events)}, {self.seconds[self.at - 1]:.1f} s"
        if isinstance(self._keys, Keys):
            where += f": {_PAUSED}" if self.paused else f", {self.speed:.3g}x: {_PLAY}"
        self.view.footer = where
