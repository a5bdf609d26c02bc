"""`frtool bench`: what the parts can do on this machine."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from frtool.errors import UsageError
from frtool.view.safe import safe_json

app = typer.Typer(help="Measure the parts of frtool on this machine.", invoke_without_command=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.callback()
def _bench(context: typer.Context) -> int:
    """Measure the parts of frtool on this machine. Without a command: the allocator."""
    return allocator() if context.invoked_subcommand is None else 0


@app.command("allocator")
def allocator(
    seconds: Annotated[float, typer.Option(help="Time for each case.")] = 1.0, json: JsonOption = False
) -> int:
    """Branches a second that the KV allocator forks, grows and frees, on one core."""
    if not 0.01 <= seconds <= 600:
        raise UsageError(f"--seconds is {seconds:g}, but must lie in 0.01 to 600")
    from frtool.bench.allocator import run_allocator_benchmark

    rows = run_allocator_benchmark(seconds=seconds)
    if json:
        print(safe_json({"machine": _machine(), "rows": [asdict(row) | {"reached": row.reached} for row in rows]}))
        return 0
    print(f"KV allocator, {_machine()['processor']}, one thread")
    table = [("case", "shared blocks", "cycles/s", "target")]
    for row in rows:
        target = f"{row.target:,} {'reached' if row.reached else 'MISSED'}" if row.target is not None else ""
        table.append((row.case, f"{row.shared_blocks:,}", f"{row.cycles_per_second:,.0f}", target))
    _print_table(table)
    return 0


def _machine() -> dict[str, Any]:
    import torch

    return {"processor": _processor(), "python": platform.python_version(), "torch": torch.__version__}


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """The first column left, the others right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True))]
        print("  ".join(cells).rstrip())
