"""The problems of `frtool eval`: Game of 24, countdown, reasoning-gym, and files of prompts and answers."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Iterator
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

from frtool.errors import UsageError
from frtool.tasks.held_out import is_held_out
from frtool.tasks.puzzle import Puzzle, parse_puzzle
from frtool.verify.arithmetic import ArithmeticVerifier

from .items import ExactVerifier, GymVerifier, Item, NumericVerifier, number
from .solve import is_solvable

COUNTDOWN = {"numbers": 4, "low": 1, "high": 99, "targets": (10, 100), "n": 400, "seed": 0}
GYM = {"n": 100, "seed": 0}
CHECKS = ("auto", "exact", "numeric", "math")
_MOST_DRAWS = 2_000_000
_MAX_FILE_BYTES = 256 << 20


def load_items(task: str, *, offset: int = 0, limit: int | None = None) -> list[Item]:
    """The problems of a task, in a fixed order.

    `game24`; `countdown[:numbers=4,low=1,high=99,targets=10-100,n=400,seed=0]`; `reasoning-gym:NAME[:n=100,seed=0]`;
    a path `FILE.jsonl[:check=auto|exact|numeric|math]` of objects with `prompt`, `answer` and perhaps `id`.
    Countdown puzzles, reasoning-gym's too, are those that the embedded model's training held out. Raises UsageError.
    """
    stop = None if limit is None else offset + limit
    items = list(islice(_items(task, stop), offset, stop))
    if not items:
        raise UsageError(f"the task {task} has no problems after --offset {offset}")
    return items


def _items(task: str, stop: int | None) -> Iterator[Item]:
    name, _, rest = task.partition(":")
    path, _, file_options = task.rpartition(":")
    if task == "game24":
        return _game24()
    if name == "countdown":
        return _countdown(_options(task, rest, COUNTDOWN))
    if name == "reasoning-gym" and rest:
        which, _, settings = rest.partition(":")
        return _gym(which, _options(task, settings, GYM), stop)
    if task.endswith(".jsonl"):
        return _file(Path(task), "auto")
    if path.endswith(".jsonl"):
        return _file(Path(path), _options(task, file_options, {"check": "auto"})["check"])
    raise UsageError(f"there is no task `{task}`", hint="choose game24, countdown, reasoning-gym:NAME or a FILE.jsonl")


def _options(task: str, text: str, known: dict[str, Any]) -> dict[str, Any]:
    found = dict(known)
    for pair in filter(None, text.split(",")):
        key, _, value = pair.partition("=")
        if key not in known:
            raise UsageError(f"the task {task} has no option `{key}`", hint=f"it has {', '.join(known)}")
        try:
            if isinstance(known[key], str):
                found[key] = value
            elif isinstance(known[key], tuple):
                low, _, high = value.partition("-")
                found[key] = (int(low), int(high or low))
            else:
                found[key] = int(value)
        except ValueError:
            raise UsageError(f"{key} of the task {task} is `{value}`, which is no number") from None
    return found


def puzzle_item(id: str, puzzle: Puzzle) -> Item:
    prompt = f"Make {puzzle.target} from {', '.join(map(str, puzzle.numbers))}"
    return Item(id, prompt, ArithmeticVerifier(puzzle), puzzle)


def _game24() -> Iterator[Item]:
    text = (files("frtool.eval") / "game24.csv").read_text("utf-8")
    for row in csv.DictReader(line for line in text.splitlines() if not line.startswith("#")):
        yield puzzle_item(row["rank"], Puzzle(tuple(map(int, row["numbers"].split())), 24))


def _countdown(options: dict[str, Any]) -> Iterator[Item]:
    """Numbers and target drawn evenly and independently; kept where held out and solvable, none twice."""
    count, low, high = options["numbers"], options["low"], options["high"]
    first, last = options["targets"]
    if not (2 <= count <= 6 and 1 <= low <= high <= 999 and 1 <= first <= last <= 9_999 and options["n"] >= 1):
        raise UsageError(
            "countdown takes 2 to 6 numbers of 1 to 999, targets of 1 to 9,999, low before high, and n of 1 or more"
        )
    draw = random.Random(f"countdown {options['seed']}")
    seen: set[tuple[tuple[int, ...], int]] = set()
    for _ in range(_MOST_DRAWS):
        numbers = tuple(sorted(draw.randint(low, high) for _ in range(count)))
        target = draw.randint(first, last)
        if not is_held_out(numbers, target) or (numbers, target) in seen:
            continue
        seen.add((numbers, target))
        if is_solvable(numbers, target):
            yield puzzle_item(f"{'-'.join(map(str, numbers))}={target}", Puzzle(numbers, target))
            options["n"] -= 1
            if not options["n"]:
                return
    raise UsageError("too few puzzles of this kind are solvable and held out of training")


def _gym(name: str, options: dict[str, Any], stop: int | None) -> Iterator[Item]:
    try:
        import reasoning_gym
    except ImportError:
        raise UsageError(
            "reasoning-gym is not installed", hint="install it: pip install 'flash-frtool[eval]'"
        ) from None
    size = options["n"] if stop is None else min(options["n"], stop)
    restricted = name == "countdown"
    try:
        # Its items are seeded with seed + index, so neighbouring seeds would share nearly all of them.
        dataset = reasoning_gym.create_dataset(name, size=64 * size if restricted else size, seed=options["seed"] << 24)
    except Exception as error:
        raise UsageError(f"reasoning-gym has no task {name}: {' '.join(str(error).split())[:200]}") from None
    found = 0
    for index in range(len(dataset)):
        entry = dataset[index]
        puzzle = parse_puzzle(entry["question"]) if name in ("countdown", "puzzle24") else None
        if restricted and (puzzle is None or not is_held_out(sorted(puzzle.numbers), puzzle.target)):
            continue
        if name == "puzzle24" and puzzle is not None:  # its own scorer ignores the numbers that are given
            verifier: Any = ArithmeticVerifier(puzzle)
        else:
            verifier = GymVerifier(dataset, entry, expressions=restricted)
        yield Item(str(index), entry["question"], verifier, puzzle)
        found += 1
        if found == size:
            return


def _file(path: Path, check: str) -> Iterator[Item]:
    if check not in CHECKS:
        raise UsageError(f"check `{check}` is unknown", hint=f"choose from {', '.join(CHECKS)}")
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise UsageError(f"{path} is larger than {_MAX_FILE_BYTES >> 20} MiB")
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8") from None
    ids: set[str] = set()
    for place, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            prompt, answer = str(record["prompt"]), str(record["answer"])
            id = str(record.get("id", place))
            if not prompt.strip() or id in ids:
                raise ValueError("an empty prompt, or an id for the second time")
            verifier = _check(check, answer)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UsageError(
                f"{path}, line {place}: {' '.join(str(error).split())[:200]}",
                hint='each line is an object such as {"prompt": "What is 6 times 7?", "answer": "42"}',
            ) from None
        ids.add(id)
        yield Item(id, prompt, verifier, parse_puzzle(prompt), answer)


def _check(check: str, answer: str) -> Any:
    from frtool.verify.math import MathVerifier

    kinds: dict[str, Callable[[str], Any]] = {
        "exact": ExactVerifier,
        "numeric": NumericVerifier,
        "math": MathVerifier,
        "auto": ExactVerifier if number(answer) is None else NumericVerifier,
    }
    return kinds[check](answer)
