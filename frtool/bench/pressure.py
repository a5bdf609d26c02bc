"""A search in a KV pool that holds a part of its tree, against the same search with room: the tree, what is read again
or copied back from host memory, and the time.

`python -m frtool.bench.pressure --output FILE.json`, on the embedded model; `--help` lists the rest.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frtool.config import SearchConfig
from frtool.session import Session
from frtool.view.model import TreeModel
from frtool.view.record import tree_record

if TYPE_CHECKING:
    from frtool.models.load import LoadedModel

SETTINGS: dict[str, Any] = {"batch": 16, "max_step_tokens": 32}
PROMPT = "Use 2 5 9 14 37 to reach 411"


@dataclass(frozen=True, slots=True)
class PressureRow:
    """One algorithm; `roomy` is the pool that nothing was evicted from, `tight` the other one."""

    algorithm: str
    steps: int
    nodes: int
    tree_blocks: int
    """Peak of the roomy pool."""
    pool_blocks: int
    """Of the tight one."""
    same_tree: bool
    """Every node with its text, log-probability, reward and visits."""
    same_answer: bool
    sampled_tokens: int
    recomputed_tokens: int
    """In the tight pool."""
    restored_tokens: int
    """Copied back from host memory instead."""
    seconds_roomy: float
    seconds_tight: float


def run_pressure_benchmark(
    loaded: LoadedModel, algorithms: dict[str, dict[str, Any]], *, steps: int = 200, part: float = 0.1, **settings: Any
) -> list[PressureRow]:
    """`part` of the peak is the tight pool; it must hold the longest path. `settings`: more of the configuration."""
    rows = []
    for name, options in algorithms.items():
        config = SearchConfig(
            prompt=PROMPT, algorithm=name, algorithm_options=options, steps=steps, **{**SETTINGS, **settings}
        )
        roomy, engine, seconds = _search(loaded, replace(config, kv_memory=1 << 30))
        assert roomy.ended is not None
        assert not roomy.ended.recomputed_tokens, "a pool of 1 GiB was too small"
        peak = roomy.ended.kv_peak_blocks
        blocks = math.ceil(part * peak)
        tight, engine, tight_seconds = _search(loaded, replace(config, kv_memory=blocks * engine.allocator.block_bytes))
        assert tight.ended is not None
        rows.append(
            PressureRow(
                algorithm=name,
                steps=roomy.steps,
                nodes=roomy.ended.nodes,
                tree_blocks=peak,
                pool_blocks=engine.allocator.num_blocks,
                same_tree=tree_record(roomy) == tree_record(tight),
                same_answer=roomy.ended.answer == tight.ended.answer and roomy.ended.best == tight.ended.best,
                sampled_tokens=roomy.ended.policy_tokens,
                recomputed_tokens=tight.ended.recomputed_tokens,
                restored_tokens=tight.ended.restored_tokens,
                seconds_roomy=seconds,
                seconds_tight=tight_seconds,
            )
        )
    return rows


def _search(loaded: LoadedModel, config: SearchConfig) -> tuple[TreeModel, Any, float]:
    session = Session.open(config, loaded=loaded)
    tree = TreeModel()
    began = time.perf_counter()
    for event in session.run():
        tree.apply(event)
    seconds = time.perf_counter() - began
    session.close()
    return tree, session.engine, seconds


ALGORITHMS: dict[str, dict[str, Any]] = {
    "mcts": {"leaf_batch": 16},
    "best-first": {"expand": 8, "leaf_batch": 8},
    "beam": {"width": 48, "keep": 12, "oversample": 1.3},
    "rebase": {"width": 48},
}


def main() -> None:
    from frtool.bench.machine import machine, put_out
    from frtool.models.load import load_model

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--part", type=float, default=0.1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    parser.add_argument("--note", help="kept in the file")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    loaded = load_model("embedded", device=given.device, dtype=given.dtype)
    rows = run_pressure_benchmark(loaded, ALGORITHMS, steps=given.steps, part=given.part, batch=given.batch)
    plan = {"prompt": PROMPT, "options": ALGORITHMS, "part": given.part, "batch": given.batch}
    record = {"machine": machine(loaded), "note": given.note, "plan": plan, "rows": [asdict(row) for row in rows]}
    put_out(record, given.output)


if __name__ == "__main__":
    main()
