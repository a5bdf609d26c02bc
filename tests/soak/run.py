"""Thousands of searches in one process: flat memory, nothing left behind, the answers of fresh processes.

    python tests/soak/run.py --searches 2000

Mixed algorithms, seeds, puzzles and budgets over the embedded model, each with a KV pool so small that it has to evict.
After a warm-up the resident memory is fitted with a line. The outcome goes into --results.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from frtool.config import SearchConfig
from frtool.models.fingerprint import fingerprint
from frtool.models.load import LoadedModel, load_model
from frtool.search.events import Ended
from frtool.session import Session
from frtool.trace import TraceWriter

HERE = Path(__file__).parent
ALGORITHMS = {
    "greedy": {},
    "best-of-n": {"n": 3},
    "self-consistency": {"n": 3},
    "beam": {"width": 4, "keep": 2},
    "dvts": {"width": 4, "expand": 2},
    "rebase": {"width": 4},
    "best-first": {"expand": 2},
    "mcts": {},
    "ab-mcts": {},
    "gumbel": {"considered": 3, "simulations": 6},
}
PUZZLES = ("4, 5, 6, 10", "1, 2, 3, 4", "3, 8, 9, 12", "2, 2, 7, 11", "5, 5, 6, 9", "1, 6, 11, 13")
_POOL_BLOCKS = 24


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=2000)
    parser.add_argument("--fresh", type=int, default=8, help="searches to repeat in processes of their own")
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    parser.add_argument("--trace-folder", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    loaded = load_model("embedded", device="cpu")
    torch.set_num_threads(1)
    if arguments.one is not None:
        print(json.dumps(answer(loaded, arguments.one, None)))
        return 0
    outcome = soak(loaded, arguments.searches, arguments.trace_folder / f"frtool-soak-{os.getpid()}.jsonl")
    again = random.Random(0).sample(range(arguments.searches), min(arguments.fresh, arguments.searches))
    outcome["repeated_in_fresh_processes"] = len(again)
    outcome["answers_that_differ"] = sum(fresh(place) != outcome["answers"][place] for place in again)
    del outcome["answers"]
    arguments.results.write_text(json.dumps(outcome, indent=2) + "\n", "utf-8")
    print(json.dumps(outcome, indent=2))
    return int(outcome["leaks"] or outcome["answers_that_differ"])


def configuration(place: int) -> SearchConfig:
    """The search number `place`."""
    draw = random.Random(place)
    algorithm = draw.choice(list(ALGORITHMS))
    config = SearchConfig(
        f"Make 24 from {draw.choice(PUZZLES)}",
        algorithm=algorithm,
        algorithm_options=ALGORITHMS[algorithm],
        seed=draw.randrange(1000),
        steps=draw.randint(1, 5),
        max_step_tokens=draw.choice([6, 20]),
        batch=draw.choice([2, 4, 8]),
        block_size=4,
        device="cpu",
    )
    return config.resolved()


def answer(loaded: LoadedModel, place: int, trace: Path | None) -> list[Any]:
    """How the search ended. Raises AssertionError where it left blocks behind."""
    from frtool.engine.pool import block_bytes

    config = replace(configuration(place), kv_memory=_POOL_BLOCKS * block_bytes(loaded, 4))
    session = Session.open(config, loaded=loaded)
    ended = None
    writer = None if trace is None else TraceWriter(trace)
    for event in session.run():
        if writer is not None:
            writer.write(event)
        if isinstance(event, Ended):
            ended = event
    if writer is not None:
        writer.close()
    assert ended is not None
    session.engine.allocator.check()
    session.engine.release("0")
    assert session.engine.allocator.free_blocks == session.engine.allocator.num_blocks, f"search {place} left blocks"
    return [
        ended.reason,
        ended.best,
        ended.answer,
        ended.reward,
        ended.nodes,
        ended.policy_tokens,
        ended.recomputed_tokens,
    ]


def fresh(place: int) -> list[Any]:
    command = [sys.executable, __file__, "--one", str(place)]
    found: list[Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def soak(loaded: LoadedModel, searches: int, trace: Path) -> dict[str, Any]:
    answers: list[list[Any]] = []
    memory: list[tuple[int, int]] = []
    files, threads = 0, 0
    began = time.monotonic()
    for place in range(searches):
        answers.append(json.loads(json.dumps(answer(loaded, place, trace))))
        if place == searches // 10:
            files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
        if place >= searches // 10 and place % max(searches // 100, 1) == 0:
            gc.collect()
            memory.append((place, resident()))
    trace.unlink()
    places, sizes = np.array(memory, float).T
    slope = float(np.polyfit(places, sizes, 1)[0]) if len(memory) > 1 else 0.0
    left = {
        "files": len(os.listdir("/proc/self/fd")) - files,
        "threads": threading.active_count() - threads,
        "children": len(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()),
    }
    growth = slope * searches / 2**20
    return {
        "searches": searches,
        "algorithms": len(ALGORITHMS),
        "reasons": {reason: sum(a[0] == reason for a in answers) for reason in sorted({a[0] for a in answers})},
        "sampled_tokens": sum(a[5] for a in answers),
        "tokens_read_again_after_eviction": sum(a[6] for a in answers),
        "seconds": round(time.monotonic() - began),
        "resident_mib_after_warm_up": round(float(sizes[0]) / 2**20, 1),
        "resident_mib_at_the_end": round(float(sizes[-1]) / 2**20, 1),
        "growth_mib_over_the_run": round(growth, 2),
        "left_behind": left,
        "leaks": int(any(left.values()) or growth > 16),
        "answers": answers,
        "weights": fingerprint(loaded.source),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.exit(main())
