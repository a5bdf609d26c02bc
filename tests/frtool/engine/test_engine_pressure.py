"""A pool of a tenth of the tree: the same tree, at the price of tokens that are read again."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from frtool.bench.pressure import run_pressure_benchmark
from frtool.bench.swap import run_swap_benchmark
from frtool.engine.eviction import eviction_order
from frtool.engine.rows import Kept
from frtool.models.load import LoadedModel

ALGORITHMS: dict[str, dict[str, Any]] = {
    "mcts": {"widen": 30.0, "leaf_batch": 16},
    "best-first": {"expand": 30, "leaf_batch": 4, "distinct": False},
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_tenth_of_the_memory_gives_the_same_tree(loaded_model: Callable[..., LoadedModel], algorithm: str) -> None:
    tiny = loaded_model(max_positions=512, sharpness=0.2)
    options = {algorithm: ALGORITHMS[algorithm]}
    (row,) = run_pressure_benchmark(tiny, options, steps=200, part=0.1, max_step_tokens=10, max_depth=4)
    assert row.pool_blocks <= 0.1 * row.tree_blocks + 1
    assert row.same_tree
    assert row.same_answer
    assert row.recomputed_tokens > 0


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_host_memory_in_place_of_reading_again_gives_the_same_tree(
    loaded_model: Callable[..., LoadedModel], algorithm: str
) -> None:
    tiny = loaded_model(max_positions=512, sharpness=0.2)
    options = {algorithm: ALGORITHMS[algorithm]}
    rows = {}
    for space in (0, 20_000, 1 << 30):
        (rows[space],) = run_pressure_benchmark(
            tiny, options, steps=200, part=0.1, max_step_tokens=10, max_depth=4, swap_space=space
        )
        assert rows[space].same_tree
        assert rows[space].same_answer
    none, some, plenty = rows.values()
    assert none.restored_tokens == 0
    assert none.recomputed_tokens > some.recomputed_tokens > plenty.recomputed_tokens
    assert 0 < some.restored_tokens < plenty.restored_tokens


def kept(id: str, parent: Kept | None, value: float = 0.0, *, ended: bool = False) -> Kept:
    logits: Any = None if ended else SimpleNamespace()
    return Kept(id, parent, [1], 1 if parent is None else parent.length + 1, (), logits, 0, value=value)


def test_ended_paths_go_first_then_leaves_by_value_then_what_stood_above_them() -> None:
    root = kept("0", None)
    a, b = kept("0.0", root, 0.9), kept("0.1", root, 0.2)
    low, high = kept("0.0.0", a, 0.1), kept("0.0.1", a, 0.8)
    ended = kept("0.1.0", b, 0.7, ended=True)
    order = [node.id for node in eviction_order([root, a, b, high, low, ended], [])]
    assert order == ["0.1.0", "0.0.0", "0.1", "0.0.1", "0.0"]


def test_parents_of_growing_steps_go_last_and_equal_values_by_use() -> None:
    root = kept("0", None)
    first, second, busy = kept("0.0", root, 0.5), kept("0.1", root, 0.5), kept("0.2", root, 0.1)
    assert [node.id for node in eviction_order([root, busy, second, first], [busy])] == ["0.1", "0.0", "0.2"]


def test_the_swap_benchmark_brings_back_what_it_takes_out(loaded_model: Callable[..., LoadedModel]) -> None:
    row = run_swap_benchmark(loaded_model(), prompt=32, nodes=3, tokens=10, block_size=4, repeats=1)
    assert (row.nodes, row.tokens, row.copied) == (3, 10, False)
    assert row.bytes == 30 * 2 * 2 * 2 * 16 * 4
    assert min(row.seconds_out, row.seconds_back, row.seconds_again) > 0
