"""Charts for the terminal."""

from __future__ import annotations

import io
import sys

import pytest
from rich.cells import cell_len
from rich.console import Console

from frtool.errors import UsageError
from frtool.eval.report import terminal_charts
from frtool.eval.summary import Summary
from frtool.view.chart import Series, bars, chart

LABELS = {"title": "a task", "x_label": "tokens", "y_label": "right"}


def console(encoding: str = "utf-8", width: int = 90, **settings) -> Console:
    return Console(file=io.TextIOWrapper(io.BytesIO(), encoding=encoding), width=width, **settings)


def summary(algorithm: str, tokens: float, accuracy: float) -> Summary:
    return Summary(
        "game24", algorithm, 48, 100, 50, accuracy, 0.1, 0.9, 0.8, 0, 40, 30, tokens, 8, 1.5, 1.5, 2.0,
    )  # fmt: skip


@pytest.fixture
def plotille():
    return pytest.importorskip("plotille")


@pytest.mark.usefixtures("plotille")
class TestChart:
    def test_points_and_names_of_all_series_are_drawn(self):
        text = chart([Series("first", [10, 100], [1, 2]), Series("other", [10], [3])], console(), **LABELS)
        assert text.startswith("a task\n")
        assert text.count("A") == 3  # two points and the legend
        assert text.count("B") == 2
        assert "first" in text
        assert "(tokens)" in text

    @pytest.mark.parametrize("width", [40, 80, 200])
    def test_lines_fit_the_terminal(self, width):
        text = chart([Series("a", [1, 5000], [1, 9000])], console(width=width), log_y=True, **LABELS)
        assert max(map(len, text.splitlines())) <= max(60, width)

    def test_plain_terminals_get_plain_letters_and_pipes_no_escapes(self):
        text = chart([Series("caf\u00e9 \x1b[2J", [1, 10], [1, 2])], console("ascii"), **LABELS)
        assert text.isascii()
        assert "\x1b" not in text

    def test_colour_only_where_it_is_wanted(self, monkeypatch):
        monkeypatch.setenv("FORCE_COLOR", "1")  # plotille looks at stdout for itself

        def colours(**settings) -> bool:
            return "\x1b[" in chart([Series("a", [1, 10], [1, 2])], console(**settings), **LABELS)

        assert colours(force_terminal=True)
        assert not colours(force_terminal=True, no_color=True)
        assert not colours(force_terminal=False)

    def test_one_point_alone_is_drawn(self):
        assert "A" in chart([Series("only", [7], [7])], console(), **LABELS)

    def test_accuracy_is_drawn_for_each_task_without_what_took_no_tokens(self):
        rows = [summary("beam", 700, 0.8), summary("beam", 2000, 0.9), summary("random-policy", 0, 0.2)]
        text = terminal_charts([*rows[:2], rows[2]], console())
        assert "beam" in text
        assert "game24" in text
        assert terminal_charts([rows[2]], console())  # its scorer spent some
        assert terminal_charts([], console()) == ""


class TestBars:
    @pytest.mark.parametrize("width", [40, 80, 200])
    def test_bars_are_as_long_as_their_values_and_fit_the_terminal(self, width):
        lines = bars({"all": 20_000, "half": 10_000, "日本語": 0}, console(width=width), title="rates").splitlines()
        assert lines[0] == "rates"
        assert lines[1].count("█") == pytest.approx(2 * lines[2].count("█"), abs=1)
        assert "█" not in lines[3]
        assert lines[2].startswith("half    10,000  ")
        assert cell_len(lines[1]) == max(map(cell_len, lines)) <= min(max(60, width), 120)

    def test_plain_terminals_get_plain_letters_and_no_escapes(self):
        text = bars({"caf\u00e9 \x1b[2J" + "long " * 50: 1.0}, console("ascii"), title="rates")
        assert text.isascii()
        assert "\x1b" not in text
        assert "###" in text

    def test_nothing_but_zeros_is_drawn(self):
        assert "none" in bars({"none": 0.0}, console(), title="rates")


def test_missing_library_is_a_usage_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "plotille", None)
    with pytest.raises(UsageError, match="plotille"):
        chart([Series("a", [1], [1])], console(), **LABELS)


@pytest.mark.usefixtures("plotille")
def test_benchmark_draws_its_times(capfd):
    from frtool.cli.app import run

    small = "--batch-sizes 1,2 --prefix 32 --suffix 8 --heads 2 --kv-heads 1 --head-dim 16 --terminal-plot"
    assert run(["bench", "attention", *small.split()]) == 0
    out = capfd.readouterr().out
    assert "(branches)" in out
    assert "memory floor" in out


@pytest.mark.parametrize(
    "command", [*(["bench", part] for part in ("allocator", "attention", "decode", "search")), ["eval", "game24"]]
)
def test_a_chart_is_no_json(capfd, command):
    from frtool.cli.app import run

    assert run([*command, "--terminal-plot", "--json"]) == 2
    assert "--terminal-plot has no use with --json" in capfd.readouterr().err
