"""The table and the chart of a decode benchmark."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from frtool.view.figure import headless_pyplot, save_figure

from .decode import DecodeReport


def decode_table(report: DecodeReport) -> Table:
    """One row a batch size."""
    table = Table(title=headline(report), title_justify="left", title_style="")
    peers = sorted({name for row in report.rows for name in row.peers_ms})
    columns = ["branches", "ms/step", "tokens/s", "roofline ms", "ratio", "host ms", "host share"]
    columns += ["peak GB", "x least", *(f"{peer} ms" for peer in peers), "passes"]
    for column in columns:
        table.add_column(column, justify="left" if column == "passes" else "right")
    for row in report.rows:
        peak = row.peak_bytes
        table.add_row(
            str(row.batch),
            f"{row.step_ms:.2f}",
            f"{row.tokens_per_second:,.0f}",
            f"{row.roofline_ms:.2f}",
            f"{row.ratio:.2f}",
            f"{row.host_ms:.2f}",
            f"{row.host_share:.1%}",
            "-" if peak is None else f"{peak / 1e9:.2f}",
            "-" if peak is None else f"{peak / row.least_bytes:.2f}",
            *("-" if row.peers_ms.get(peer) is None else f"{row.peers_ms[peer]:.1f}" for peer in peers),
            row.mode,
        )
    return table


def headline(report: DecodeReport) -> str:
    machine, settings = report.machine, report.settings
    return (
        f"{machine['name']}, torch {machine['torch']}, copies at {report.bandwidth / 1e9:,.0f} GB/s\n"
        f"{settings['model']}, {settings['weights']}, {settings['dtype']}; {settings['prefix']:,} shared tokens, "
        f"{settings['suffix']} to each branch"
    )


def draw_chart(report: DecodeReport, folder: Path) -> list[Path]:
    """decode.png and decode.svg in `folder`. Raises ImportError without matplotlib (extra `plot`)."""
    pyplot = headless_pyplot()

    folder.mkdir(parents=True, exist_ok=True)
    sizes = [row.batch for row in report.rows]
    figure, axes = pyplot.subplots(figsize=(6.0, 4.0), layout="constrained")
    axes.plot(sizes, [row.step_ms for row in report.rows], marker="o", label="frtool")
    axes.plot(sizes, [row.roofline_ms for row in report.rows], linestyle="--", label="roofline")
    for peer in sorted({name for row in report.rows for name in row.peers_ms}):
        points = [(row.batch, row.peers_ms[peer]) for row in report.rows if row.peers_ms.get(peer) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), marker="s", label=peer)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_xlabel("branches")
    axes.set_ylabel("ms a step")
    axes.set_title(f"{report.settings['model']}, {report.machine['name']}")
    axes.legend()
    return save_figure(figure, folder, "decode")


def terminal_chart(report: DecodeReport, console: Console) -> str:
    """The time of a step over the branches, as text. Raises UsageError where plotille is missing."""
    from frtool.view.chart import Series, chart

    lines: dict[str, list[tuple[int, float | None]]] = {
        "frtool": [(row.batch, row.step_ms) for row in report.rows],
        "roofline": [(row.batch, row.roofline_ms) for row in report.rows],
    }
    for peer in sorted({name for row in report.rows for name in row.peers_ms}):
        lines[peer] = [(row.batch, row.peers_ms.get(peer)) for row in report.rows]
    series = []
    for name, points in lines.items():
        known = [(x, y) for x, y in points if y is not None]
        if known:
            series.append(Series(name, [x for x, _ in known], [y for _, y in known]))
    return chart(series, console, title="a decode step", x_label="branches", y_label="ms", log_y=True)
