"""The table and the chart of a search benchmark."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from frtool.view.chart import bars
from frtool.view.figure import headless_pyplot, save_figure

from .search import SearchReport


def search_table(report: SearchReport) -> Table:
    """One row an algorithm."""
    table = Table(title=headline(report), title_justify="left", title_style="")
    for column in (
        "search",
        "seconds",
        "nodes/s",
        "tokens/s",
        "transformers tokens/s",
        "host share",
        "search µs/step",
        "engine µs/step",
        "KV saved",
    ):
        table.add_column(column, justify="left" if column == "search" else "right")
    for row in report.rows:
        figures = row.to_dict()
        peer = row.peer_tokens_per_second
        table.add_row(
            row.algorithm,
            f"{row.seconds:.2f}",
            f"{figures['nodes_per_second']:,.0f}",
            f"{figures['tokens_per_second']:,.0f}",
            "-" if peer is None else f"{peer:,.0f}",
            f"{row.host_share:.1%}",
            f"{figures['search_us_per_step']:,.0f}",
            f"{figures['engine_us_per_step']:,.0f}",
            f"{figures['kv_saved']:.1f}x",
        )
    return table


def headline(report: SearchReport) -> str:
    machine, settings = report.machine, report.settings
    threads = "" if machine["threads"] is None else f", {machine['threads']} threads"
    return (
        f"{machine['device']}{threads}, torch {machine['torch']}; {machine['model']} in {machine['dtype']}\n"
        f"{len(settings['puzzles'])} puzzles, at most {settings['steps']} steps each, {settings['batch']} rows, "
        f"best of {settings['repeats']}"
    )


def draw_chart(report: SearchReport, folder: Path) -> list[Path]:
    """search.png and search.svg in `folder`. Raises ImportError without matplotlib (extra `plot`)."""
    pyplot = headless_pyplot()

    folder.mkdir(parents=True, exist_ok=True)
    names = [row.algorithm for row in report.rows]
    figure, axes = pyplot.subplots(figsize=(6.0, 4.0), layout="constrained")
    places = range(len(names))
    ours = [row.tokens / row.seconds for row in report.rows]
    axes.bar([place - 0.2 for place in places], ours, 0.4, label="frtool")
    peers = [row.peer_tokens_per_second for row in report.rows]
    if all(peer is not None for peer in peers):
        axes.bar([place + 0.2 for place in places], peers, 0.4, label="transformers, one generate a step")
    axes.set_xticks(list(places), names)
    axes.set_ylabel("tokens a second")
    axes.set_title(f"{report.machine['model']}, {report.machine['device']}")
    axes.legend()
    return save_figure(figure, folder, "search")


def terminal_chart(report: SearchReport, console: Console) -> str:
    """The tokens a second of each search, as bars of text, those of transformers below."""
    values: dict[str, float] = {}
    for row in report.rows:
        values[f"{row.algorithm}, frtool"] = row.tokens / row.seconds
        if row.peer_tokens_per_second is not None:
            values[f"{row.algorithm}, transformers"] = row.peer_tokens_per_second
    return bars(values, console, title="tokens a second")
