"""`frtool bench attention` as a library: cases, figures, report."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from frtool.bench.attention import AttentionReport, _time_plan, run
from frtool.bench.attention_baselines import hydragen, sdpa_copied
from frtool.bench.attention_cases import build_case, fasttree_cases, level_case, search_case, shared_prompt_case
from frtool.bench.attention_report import attention_table, draw_charts, headline
from frtool.kernels.attention import tree_attention

SMALL = {"heads": 4, "kv_heads": 2, "head_dim": 16, "device": "cpu"}


@pytest.fixture(scope="module")
def report() -> AttentionReport:
    lines: list[str] = []
    made = run(
        batch_sizes=[1, 3],
        prefix=40,
        suffix=8,
        baselines=("sdpa", "hydragen", "flex"),
        on_progress=lines.append,
        **SMALL,
    )
    assert any("B=3" in line for line in lines)
    return made


def test_every_row_has_both_linear_baselines_and_a_small_error(report: AttentionReport) -> None:
    assert [row.batch for row in report.rows] == [1, 3]
    for row in report.rows:
        assert row.tree_us > 0
        assert row.linear_shared_us is not None
        assert row.linear_copied_us is not None
        assert row.error < 1e-5
        assert row.floor_us > 0
        assert row.plan_us > 0


def test_memory_comes_from_the_allocator(report: AttentionReport) -> None:
    row = report.rows[1]
    token = 2 * 2 * 16 * 4
    assert row.kv_bytes == (40 + 3 * 8) * token
    assert row.kv_bytes_unshared == 3 * 48 * token
    assert row.saved == pytest.approx(1 - 64 / 144)


def test_timing_plans_leaves_the_tree_as_it_was() -> None:
    pool, branches = build_case(
        shared_prompt_case(5, 40, 8), kv_heads=2, head_dim=16, block_size=8, layers=1, device="cpu", dtype=torch.float32
    )
    tables, held = pool.block_tables(branches), pool.token_counts()
    assert _time_plan(pool, branches, heads=4) > 0
    assert pool.token_counts() == held
    assert (pool.block_tables(branches) == tables).all()
    pool.check()


def test_without_a_prefix_nothing_is_shared() -> None:
    (row,) = run(batch_sizes=[3], prefix=0, suffix=20, baselines=(), **SMALL).rows
    assert (row.batch, row.saved) == (3, 0)
    assert row.error < 1e-5


def test_a_baseline_that_cannot_run_is_skipped_with_a_line(report: AttentionReport) -> None:
    assert report.rows[0].peers_us["flex"] is None
    assert any("flex" in note and "CUDA" in note for note in report.notes)


def test_the_report_writes_json_and_prints_a_table(report: AttentionReport, tmp_path: Path) -> None:
    report.write(tmp_path / "report.json")
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["machine"]["name"]
    assert data["rows"][1]["saved"] == pytest.approx(1 - 64 / 144)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(attention_table(report))
    text = console.export_text()
    assert "linear µs, shared" in text
    assert "B=3" in text
    assert headline(report).splitlines()[0] in text


def test_the_charts_are_drawn(report: AttentionReport, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    paths = draw_charts(report, tmp_path / "charts")
    assert {p.stem for p in paths} == {"speedup", "bandwidth", "memory"}
    assert [p.suffix for p in paths] == [".png", ".svg"] * 3
    assert all(p.stat().st_size > 1000 for p in paths)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 5}, "5 query heads are no multiple of 2 kv heads"),
        ({"dtype": "int8"}, "dtype must be float16, bfloat16 or float32, not 'int8'"),
        ({"suite": "none"}, "suite must be one of seed, fasttree, search, not 'none'"),
        ({"baselines": ("vllm",)}, "baselines are sdpa, flex, hydragen, flashinfer, not 'vllm'"),
        ({"batch_sizes": [0]}, "batch size must be at least 1, not 0"),
        ({"prefix": -1}, "prefix must be at least 0, not -1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(**{**SMALL, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize("baseline", [sdpa_copied, hydragen])
def test_baselines_compute_the_same_attention(baseline: object) -> None:
    case = shared_prompt_case(5, 48, 16)
    pool, branches = build_case(
        case, kv_heads=2, head_dim=16, block_size=16, layers=2, device="cpu", dtype=torch.float32
    )
    q = torch.randn(2, 5, 4, 16)
    calls = baseline(case, pool, branches, q)  # type: ignore[operator]
    for layer, call in enumerate(calls):
        expected = tree_attention(q[layer], pool, branches, layer=layer)
        torch.testing.assert_close(call(), expected, rtol=1e-4, atol=1e-5)


def test_cases_are_those_of_the_paper() -> None:
    cases = fasttree_cases()
    assert len(cases) == 15
    assert [c.batch for c in cases[:5]] == [64, 256, 256, 256, 1024]
    assert cases[7].unique_tokens == 256 + 4 * 8 + 16 * 256 + 64 * 64 + 256 * 32 + 1024 * 256
    assert level_case("x", (1, 2, 4), (1, 1, 1)).parents == (-1, 0, 0, 1, 1, 2, 2)


def test_search_trees_have_as_many_branches_as_asked_and_do_not_change() -> None:
    assert search_case(24).batch == 24
    assert search_case(24) == search_case(24)
    assert search_case(24, seed=1) != search_case(24)


def test_built_branches_have_their_lengths_and_share() -> None:
    case = search_case(12, prompt=50)
    pool, branches = build_case(case, kv_heads=1, head_dim=1, block_size=8, layers=1, device="cpu", dtype=torch.float32)
    ends = case.path_tokens()
    assert pool.lengths(branches).tolist() == [ends[leaf] for leaf in case.leaves]
    assert pool.stats().logical_tokens == case.logical_tokens
    pool.check()
