"""`frtool bench search` runs whole searches and says where their time went."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from frtool.bench import search
from frtool.bench.search_baseline import branches_of
from frtool.cli import bench_search
from frtool.cli.app import app
from frtool.errors import UsageError
from frtool.search.events import NodeAdded


@pytest.fixture(scope="module")
def report():
    return search.run(algorithms=["best-of-n", "mcts"], steps=12, batch=4, repeats=1, baseline=False)


def test_every_second_is_the_models_the_engines_or_the_searchs(report):
    assert [row.algorithm for row in report.rows] == ["best-of-n", "mcts"]
    for row in report.rows:
        assert 0 < row.model_seconds < row.seconds
        assert row.engine_seconds > 0
        assert row.search_seconds > 0
        assert row.nodes <= row.steps <= row.tokens
        assert row.kv_unshared_peak_bytes > row.kv_peak_bytes > 0
        assert row.peer_tokens_per_second is None


def test_the_report_is_json_with_the_derived_figures(report):
    row = json.loads(json.dumps(report.to_dict()))["rows"][0]
    assert row["nodes_per_second"] == pytest.approx(row["nodes"] / row["seconds"])
    assert 0 < row["host_share"] < 1


def test_a_step_continues_the_tokens_of_its_ancestors():
    def node(name: str, ids: list[int]) -> NodeAdded:
        return NodeAdded(id=name, text="", tokens=len(ids), logprob=0.0, prior=1.0, token_ids=ids)

    nodes = [node("0.0", [5, 6]), node("0.1", [7]), node("0.0.0", [8]), node("0.0.0.2", [])]
    branches = branches_of(nodes, [1, 2])
    assert [branch.path for branch in branches] == [[1, 2], [1, 2], [1, 2, 5, 6], [1, 2, 5, 6, 8]]
    assert [branch.new for branch in branches] == [2, 1, 1, 1]


def test_the_command_prints_one_json_object(monkeypatch, report):
    monkeypatch.setattr(search, "run", lambda **_: report)
    result = CliRunner().invoke(app, ["bench", "search", "--json"])
    assert json.loads(result.stdout)["settings"]["steps"] == 12


def test_the_table_has_a_row_for_each_search(monkeypatch, report):
    monkeypatch.setattr(search, "run", lambda **_: report)
    result = CliRunner().invoke(app, ["bench", "search"])
    assert "best-of-n" in result.stdout
    assert "mcts" in result.stdout


@pytest.mark.parametrize("peer", [None, 90.0])
def test_rates_are_drawn_in_the_terminal_and_into_files(monkeypatch, tmp_path, report, peer):
    pytest.importorskip("matplotlib")
    rows = [replace(row, peer_tokens_per_second=peer) for row in report.rows]
    monkeypatch.setattr(search, "run", lambda **_: replace(report, rows=rows))
    result = CliRunner().invoke(app, ["bench", "search", "--terminal-plot", "--plot", str(tmp_path)])
    chart = result.stdout[result.stdout.index("tokens a second\n") :]
    assert chart.count("frtool  ") == 2
    assert chart.count(", transformers  ") == (0 if peer is None else 2)
    assert {path.name for path in tmp_path.iterdir()} == {"search.png", "search.svg"}


@pytest.mark.parametrize("bad", [{"algorithms": "magic"}, {"steps": 0}, {"baseline": "other"}])
def test_a_bad_call_is_a_usage_error(bad):
    with pytest.raises(UsageError):
        bench_search.search(**{"algorithms": "beam", "steps": 8, "batch": 4, "repeats": 1, "baseline": "none"} | bad)
