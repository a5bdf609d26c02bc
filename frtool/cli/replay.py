"""`frtool replay`: a recorded search, played or run again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from frtool.errors import UsageError

from .show import warn

if TYPE_CHECKING:
    from frtool.export.recorded import RecordedSearch


def replay(
    trace: Annotated[Path, typer.Argument(metavar="TRACE", help="A trace that `frtool search --trace` wrote.")],
    speed: Annotated[
        float | None, typer.Option(help="Times real time; by default a long search takes 20 seconds.")
    ] = None,
    step: Annotated[bool, typer.Option("--step", help="Wait for a key before each step.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Run the search again and name the first difference.")
    ] = False,
    device: Annotated[str | None, typer.Option("--device", help="Where to run it again, such as cpu.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let the run use Python code that the model brings.")
    ] = False,
    trust_verify_command: Annotated[
        bool, typer.Option("--trust-verify-command", help="Let the run use the verifying program that the trace names.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the verdict of --verify as JSON.")] = False,
) -> int:
    """Play a recorded search in the terminal: space pauses, n and b go step by step, + and - change the speed.

    With --verify, run it again instead: exit status 0 where the same tree grew, 1 where it did not.
    """
    if verify and (step or speed is not None):
        raise UsageError("--verify runs the search anew: --step and --speed have no meaning")
    if not verify and (device is not None or trust_remote_code or trust_verify_command or json):
        raise UsageError("--device, --trust-remote-code, --trust-verify-command and --json belong to --verify")
    if speed is not None and not (0 < speed < math.inf):
        raise UsageError(f"--speed is {speed:g}, but must be more than 0 and finite")
    from frtool.export.recorded import read_search
    from frtool.replay.keys import Keys

    if step and not Keys.available():
        raise UsageError("--step needs a terminal for its keys", hint="`frtool show` prints the whole tree")
    search = read_search(trace)
    if verify:
        from .verifying import verify_search

        trust = {"trust_remote_code": trust_remote_code, "trust_verify_command": trust_verify_command}
        return verify_search(search, device=device, json=json, **trust)
    _play(search, speed, step)
    if search.note:
        warn(search.note)
    return 0


def _play(search: RecordedSearch, speed: float | None, step: bool) -> None:
    from frtool.export.recorded import event_seconds
    from frtool.replay.keys import Keys, NoKeys
    from frtool.replay.player import Player, comfortable_speed
    from frtool.view import view_for
    from frtool.view.live import LiveView

    events = search.events if search.complete else [*search.events, search.ended]
    with view_for() as view:
        if not isinstance(view, LiveView):
            if step:
                raise UsageError("--step needs a terminal to draw on", hint="`frtool show` prints the whole tree")
            for event in events:
                view.show(event)
            return
        seconds = event_seconds(events)
        with Keys() if Keys.available() else NoKeys() as keys:
            pace = speed or comfortable_speed(seconds[-1])
            Player(view, events, seconds, speed=pace, keys=keys, paused=step).play()
