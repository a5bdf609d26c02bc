"""`frtool bench search`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from frtool.errors import FrtoolError, UsageError
from frtool.view.safe import safe_json, safe_line

_MOST_STEPS = 100_000


def search(
    algorithms: Annotated[
        str, typer.Option(metavar="NAME,…", help="Searches to run: best-of-n, beam, mcts.")
    ] = "best-of-n,beam,mcts",
    steps: Annotated[int, typer.Option(help="Most steps of a search.")] = 192,
    batch: Annotated[int, typer.Option(help="Rows of the decode batch.")] = 64,
    repeats: Annotated[int, typer.Option(help="Runs of each search; the fastest counts.")] = 3,
    baseline: Annotated[str, typer.Option(metavar="NAME", help="Beside it: hf, or none.")] = "hf",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; default the best there is.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; default float32.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="DIR", help="Draw a chart there; needs matplotlib.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Whole searches with the embedded model: nodes and tokens a second, and what the machinery costs."""
    for name, value in {"steps": steps, "batch": batch, "repeats": repeats}.items():
        if not 1 <= value <= _MOST_STEPS:
            raise UsageError(f"--{name} is {value}, but must lie in 1 to {_MOST_STEPS:,}")
    names = [name.strip() for name in algorithms.split(",")]
    known = ("best-of-n", "beam", "mcts")
    for name in names:
        if name not in known:
            raise UsageError(f"--algorithms `{name}` is unknown", hint=f"choose from {', '.join(known)}")
    if baseline not in ("hf", "none"):
        raise UsageError(f"--baseline `{baseline}` is unknown", hint="choose from hf, none")
    from frtool.threads import spin_briefly

    spin_briefly()
    from frtool.bench.search import run

    report = run(
        algorithms=list(dict.fromkeys(names)), steps=steps, batch=batch, repeats=repeats, baseline=baseline == "hf",
        device=device, dtype=dtype, on_progress=_progress,
    )  # fmt: skip
    _progress("")
    if json:
        print(safe_json(report.to_dict()))
    else:
        from rich.console import Console

        from frtool.bench.search_report import search_table

        Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(search_table(report))
    if plot is not None:
        _plot(report, plot)
    return 0


def _plot(report: Any, folder: Path) -> None:
    from frtool.bench.search_report import draw_chart

    try:
        paths = draw_chart(report, folder)
    except ImportError:
        raise FrtoolError("--plot needs matplotlib", hint='install it: pip install "flash-frtool[plot]"') from None
    for path in paths:
        print(f"wrote {safe_line(str(path))}", file=sys.stderr)


def _progress(line: str) -> None:
    """On a terminal each line takes the place of the last; elsewhere they would only fill a log."""
    if sys.stderr is not None and sys.stderr.isatty():
        print(f"\r{safe_line(line, 70):<72}", end="\r", file=sys.stderr, flush=True)
