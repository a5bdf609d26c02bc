"""`frtool bench search`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from frtool.errors import UsageError

from .bench_output import check_terminal_plot, progress, publish

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
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; default by the machine.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="DIR", help="Draw a chart there; needs matplotlib.")] = None,
    terminal_plot: Annotated[bool, typer.Option("--terminal-plot", help="Draw the rates in the terminal too.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Whole searches with the embedded model: nodes and tokens a second, and what the machinery costs."""
    check_terminal_plot(terminal_plot, json)
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
        device=device, dtype=dtype, on_progress=progress,
    )  # fmt: skip
    from frtool.bench.search_report import draw_chart, search_table, terminal_chart

    publish(
        report,
        table=search_table,
        chart=terminal_chart,
        draw=draw_chart,
        json=json,
        terminal_plot=terminal_plot,
        plot=plot,
    )
    return 0
