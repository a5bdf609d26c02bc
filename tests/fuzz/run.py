"""Coverage-guided fuzzing of everything that reads what others wrote.

    python tests/fuzz/run.py --seconds 600                 # every target, one after the other
    python tests/fuzz/run.py --seconds 60 trace gguf       # some of them

Needs atheris (`pip install atheris`); without it inputs are mutated blindly, and the result says so. Each target runs
in a process of its own; an input that crashes it is kept in --crashes. The outcome of each is put into --results.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
NAMES = ("trace", "prompt", "preset", "arithmetic", "gguf", "checkpoint")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", choices=[*NAMES, []], help="default: all")
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    parser.add_argument("--crashes", type=Path, default=Path(tempfile.gettempdir()) / "frtool-crashes")
    parser.add_argument("--child", choices=NAMES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return _child(arguments.child, arguments.seconds, arguments.crashes)
    crashed = 0
    for name in arguments.targets or NAMES:
        outcome = _fuzz(name, arguments.seconds, arguments.crashes)
        crashed += outcome["crashes"]
        print(f"{name}: {outcome['executions']:,} executions in {outcome['seconds']} s, {outcome['crashes']} crashes")
        known = json.loads(arguments.results.read_text("utf-8")) if arguments.results.exists() else {}
        known[name] = outcome
        arguments.results.write_text(json.dumps(dict(sorted(known.items())), indent=2) + "\n", "utf-8")
    return int(crashed > 0)


def _fuzz(name: str, seconds: int, crashes: Path) -> dict[str, object]:
    crashes.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--child", name, "--seconds", str(seconds), "--crashes", str(crashes)]
    began = time.monotonic()
    run = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if run.returncode:
        print(run.stderr[-4000:], file=sys.stderr)
    counted = re.search(r"number_of_executed_units: (\d+)", run.stderr) or re.search(r"\n#(\d+)\s", run.stderr[-2000:])
    return {
        "engine": "atheris" if importlib.util.find_spec("atheris") else "blind mutation",
        "seconds": round(time.monotonic() - began),
        "executions": int(counted[1]) if counted else 0,
        "crashes": int(run.returncode != 0),
        "python": platform.python_version(),
    }


def _child(name: str, seconds: int, crashes: Path) -> int:
    sys.path.insert(0, str(HERE))
    try:
        import atheris
    except ImportError:
        return _blind(name, seconds)
    with atheris.instrument_imports(include=["frtool.", "json", "tomllib", "targets"]):
        from targets import TARGETS
    target = TARGETS[name]
    with tempfile.TemporaryDirectory() as corpus:
        for index, seed in enumerate(target.seeds):
            (Path(corpus) / str(index)).write_bytes(seed)
        limits = [f"-max_total_time={seconds}", f"-max_len={target.longest}", "-rss_limit_mb=4096", "-timeout=20"]
        atheris.Setup(
            [sys.argv[0], *limits, "-print_final_stats=1", f"-artifact_prefix={crashes}/{name}-", corpus], target.run
        )
        atheris.Fuzz()
    return 0


def _blind(name: str, seconds: int) -> int:
    from targets import TARGETS

    target, draw = TARGETS[name], random.Random(0)
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        data = bytearray(draw.choice(target.seeds))
        for _ in range(draw.randint(1, 8)):
            at = draw.randrange(len(data) + 1)
            data[at : at + draw.randint(0, 4)] = draw.randbytes(draw.randint(0, 6))
        target.run(bytes(data))
        count += 1
    print(f"stat::number_of_executed_units: {count}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
