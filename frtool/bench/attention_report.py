"""The table and the charts of an attention benchmark."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from frtool.bench.attention import AttentionReport, AttentionRow
from frtool.view.figure import headless_pyplot, save_figure


def attention_table(report: AttentionReport) -> Table:
    """One row a tree; times in microseconds a call of one layer."""
    table = Table(title=headline(report), title_justify="left", title_style="")
    peers = sorted({name for row in report.rows for name in row.peers_us})
    columns = ["case", "batch", "tree µs", "linear µs, shared", "linear µs, copied", *(f"{p} µs" for p in peers)]
    columns += ["speedup", "KV saved", "GB/s", "floor µs", "x floor", "error", "plan µs"]
    for column in columns:
        table.add_column(column, justify="left" if column == "case" else "right")
    for row in report.rows:
        table.add_row(
            row.case,
            str(row.batch),
            _number(row.tree_us),
            _number(row.linear_shared_us),
            _number(row.linear_copied_us),
            *(_number(row.peers_us.get(peer)) for peer in peers),
            "-" if row.speedup is None else f"{row.speedup:.2f}x",
            f"{row.saved:.1%}",
            f"{row.bandwidth / 1e9:.0f}",
            _number(row.floor_us),
            f"{row.over_floor:.2f}",
            f"{row.error:.1e}",
            _number(row.plan_us),
        )
    return table


def headline(report: AttentionReport) -> str:
    machine, settings = report.machine, report.settings
    peaks = f"{machine.bandwidth / 1e9:.0f} GB/s, {machine.flops / 1e12:.2f} TFLOP/s"
    measured = "measured now" if machine.measured_peaks else "table"
    return (
        f"{machine.name}, torch {machine.torch}, backend {report.backend}\n"
        f"{settings.heads}/{settings.kv_heads} heads of {settings.head_dim}, {settings.dtype}; "
        f"floors from {peaks} ({measured})"
    )


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def draw_charts(report: AttentionReport, folder: Path) -> list[Path]:
    """speedup, bandwidth, memory as PNG and SVG in `folder`. Raises ImportError without matplotlib (extra `plot`)."""
    pyplot = headless_pyplot()

    folder.mkdir(parents=True, exist_ok=True)
    names = [row.case for row in report.rows]
    gib = 2**30

    def chart(file: str, title: str, unit: str, series: dict[str, list[float]]) -> list[Path]:
        figure, axes = pyplot.subplots(figsize=(max(6.0, 0.6 * len(names)), 4.0), layout="constrained")
        width = 0.8 / len(series)
        for i, (label, values) in enumerate(series.items()):
            axes.bar([x + (i - (len(series) - 1) / 2) * width for x in range(len(names))], values, width, label=label)
        axes.set_xticks(range(len(names)), names, rotation=45 if len(names) > 6 else 0)
        axes.set_title(title)
        axes.set_ylabel(unit)
        if len(series) > 1:
            axes.legend()
        return save_figure(figure, folder, file)

    def over(value: float | None, row: AttentionRow) -> float:
        return 0.0 if value is None else value / row.tree_us

    speedup = {"over linear, copied KV": [over(r.linear_copied_us, r) for r in report.rows]}
    speedup["over linear, shared pages"] = [over(r.linear_shared_us, r) for r in report.rows]
    for peer in sorted({name for row in report.rows for name in row.peers_us}):
        speedup[f"over {peer}"] = [over(r.peers_us.get(peer), r) for r in report.rows]
    return [
        *chart("speedup", "Tree attention against others", "times faster", speedup),
        *chart(
            "bandwidth", "Effective bandwidth", "GB/s",
            {
                "tree": [r.bandwidth / 1e9 for r in report.rows],
                "peak": [report.machine.bandwidth / 1e9] * len(report.rows),
            },
        ),
        *chart(
            "memory", "KV memory of a layer", "GiB",
            {
                "a copy a branch": [r.kv_bytes_unshared / gib for r in report.rows],
                "shared": [r.kv_bytes / gib for r in report.rows],
            },
        ),
    ]  # fmt: skip


def terminal_chart(report: AttentionReport, console: Console) -> str:
    """The time of a call over the branches, as text. Raises UsageError where plotille is missing."""
    from frtool.view.chart import Series, chart

    rows = sorted(report.rows, key=lambda row: row.batch)
    lines: dict[str, list[tuple[int, float | None]]] = {
        "tree": [(row.batch, row.tree_us) for row in rows],
        "linear, shared pages": [(row.batch, row.linear_shared_us) for row in rows],
        "linear, copied KV": [(row.batch, row.linear_copied_us) for row in rows],
        "memory floor": [(row.batch, row.floor_us) for row in rows],
    }
    series = []
    for name, points in lines.items():
        known = [(x, y) for x, y in points if y is not None]
        if known:
            series.append(Series(name, [x for x, _ in known], [y for _, y in known]))
    return chart(series, console, title="one layer", x_label="branches", y_label="µs", log_y=True)
