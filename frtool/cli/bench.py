"""`frtool bench`: what the parts can do on this machine."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from frtool.errors import UsageError

from .bench_decode import decode, parse_batch_sizes
from .bench_output import check_terminal_plot, progress, publish, save_charts
from .bench_search import search

app = typer.Typer(help="Measure the parts of frtool on this machine.", invoke_without_command=True)

app.command("decode")(decode)
app.command("search")(search)

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.callback()
def _bench(context: typer.Context) -> int:
    """Measure the parts of frtool on this machine. Without a command: all of them, at their defaults."""
    if context.invoked_subcommand is not None:
        return 0
    allocator()
    print()
    attention()
    print()
    return decode()


@app.command("allocator")
def allocator(
    seconds: Annotated[float, typer.Option(help="Time for each case.")] = 1.0,
    plot: Annotated[Path | None, typer.Option(metavar="DIR", help="Draw a chart there; needs matplotlib.")] = None,
    terminal_plot: Annotated[bool, typer.Option("--terminal-plot", help="Draw the rates in the terminal too.")] = False,
    json: JsonOption = False,
) -> int:
    """Branches a second that the KV allocator forks, grows and frees, on one core."""
    check_terminal_plot(terminal_plot, json)
    if not 0.01 <= seconds <= 600:
        raise UsageError(f"--seconds is {seconds:g}, but must lie in 0.01 to 600")
    from frtool.bench.allocator import run_allocator_benchmark
    from frtool.view.safe import safe_json

    rows = run_allocator_benchmark(seconds=seconds)
    if json:
        print(safe_json({"machine": _machine(), "rows": [asdict(row) | {"reached": row.reached} for row in rows]}))
    else:
        print(f"KV allocator, {_machine()['processor']}, one thread")
        table = [("case", "shared blocks", "cycles/s", "target")]
        for row in rows:
            target = f"{row.target:,} {'reached' if row.reached else 'MISSED'}" if row.target is not None else ""
            table.append((row.case, f"{row.shared_blocks:,}", f"{row.cycles_per_second:,.0f}", target))
        _print_table(table)
        if terminal_plot:
            from rich.console import Console

            from frtool.bench.allocator_report import terminal_chart

            print("\n" + terminal_chart(rows, Console()), end="")
    if plot is not None:
        from frtool.bench.allocator_report import draw_chart

        save_charts(partial(draw_chart, rows), plot)
    return 0


@app.command("attention")
def attention(
    batch_sizes: Annotated[
        str | None, typer.Option("--batch-sizes", metavar="N,N,…", help="Branches; default by the machine.")
    ] = None,
    prefix: Annotated[int | None, typer.Option(help="Tokens that the branches share; 0 for none.")] = None,
    suffix: Annotated[int | None, typer.Option(help="Tokens that each branch has to itself.")] = None,
    heads: Annotated[int, typer.Option(help="Query heads.")] = 32,
    kv_heads: Annotated[int, typer.Option("--kv-heads", help="Key and value heads.")] = 8,
    head_dim: Annotated[int, typer.Option("--head-dim", help="Width of a head.")] = 128,
    dtype: Annotated[str | None, typer.Option(help="float16, bfloat16 or float32; default by the machine.")] = None,
    block_size: Annotated[int | None, typer.Option("--block-size", help="Tokens of a KV block.")] = None,
    suite: Annotated[str, typer.Option(help="Trees: seed, fasttree or search.")] = "seed",
    baseline: Annotated[
        str, typer.Option(metavar="NAME,…", help="Beside it: sdpa, flex, hydragen, flashinfer, or none.")
    ] = "sdpa",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; default the best there is.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="DIR", help="Draw charts there; needs matplotlib.")] = None,
    terminal_plot: Annotated[bool, typer.Option("--terminal-plot", help="Draw the times in the terminal too.")] = False,
    json: JsonOption = False,
) -> int:
    """Tree attention against linear attention and other libraries, on the same trees."""
    for name, value, least in (("prefix", prefix, 0), ("suffix", suffix, 1), ("block-size", block_size, 1)):
        if value is not None and value < least:
            raise UsageError(f"--{name} is {value}, but must be at least {least}")
    check_terminal_plot(terminal_plot, json)
    if terminal_plot:
        from frtool.view.chart import check_chart

        check_chart()
    sizes = None if batch_sizes is None else parse_batch_sizes(batch_sizes)
    from frtool.bench.attention import run
    from frtool.models.devices import choose_device

    try:
        report = run(
            batch_sizes=sizes, prefix=prefix, suffix=suffix, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
            dtype=dtype, block_size=block_size, suite=suite,
            baselines=[] if baseline == "none" else [name.strip() for name in baseline.split(",")],
            device=str(choose_device(device)), on_progress=progress,
        )  # fmt: skip
    except ValueError as error:
        raise UsageError(str(error)) from None
    from frtool.bench.attention_report import attention_table, draw_charts, terminal_chart

    publish(
        report, table=attention_table, chart=terminal_chart, draw=draw_charts, notes=report.notes, json=json,
        terminal_plot=terminal_plot, plot=plot,
    )  # fmt: skip
    return 0


def _machine() -> dict[str, Any]:
    import torch

    from frtool.doctor.machine import processor

    return {"processor": processor(), "python": platform.python_version(), "torch": torch.__version__}


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """The first column left, the others right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True))]
        print("  ".join(cells).rstrip())
