"""How good a checkpoint is without a search tree: greedy, best of 16 by its own reward, and how the reward ranks.

python -m frtool.models.embedded.training.evaluate MODEL_DIRECTORY [--count 100] [--puzzles FILE.csv]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from frtool.tasks.arithmetic import ArithmeticTask
from frtool.tasks.puzzle import Puzzle
from frtool.tasks.steps import is_legal, parse_move
from frtool.verify.arithmetic import ArithmeticVerifier

from . import problems
from .batches import batch_seed, make_batch
from .trees import MAX_DOCUMENT_SIZE, Documents
from .vocabulary import BAD, BOS, EOS, GOOD, PAD, PRM, TOKENS, decode

MAX_NEW_TOKENS = 130
SAMPLES = 16
TEMPERATURES = (0.7, 1.0, 1.2)
REWARD_SEED = 2
REWARD_TOKENS = 32_768
_IDS = {token: i for i, token in enumerate(TOKENS)}


def auc(scores: NDArray[Any], good: NDArray[Any]) -> float | None:
    """Chance that a good item scores above a bad one, ties counted half; None without both kinds."""
    order = np.argsort(scores, kind="stable")
    ranks = np.empty(len(scores))
    values = scores[order]
    start = 0
    for stop in range(1, len(values) + 1):
        if stop == len(values) or values[stop] != values[start]:
            ranks[order[start:stop]] = (start + stop - 1) / 2 + 1
            start = stop
    positive, negative = int(good.sum()), int((~good).sum())
    if not positive or not negative:
        return None
    return float((ranks[good].sum() - positive * (positive + 1) / 2) / (positive * negative))


def reliability(scores: NDArray[Any], good: NDArray[Any], bins: int = 10) -> list[dict[str, float | int]]:
    """The reliability diagram: of the items whose score falls into each of `bins` equal parts of 0…1, their number,
    mean score and share of good ones. Parts without items are left out."""
    places = np.minimum((scores * bins).astype(int), bins - 1)
    return [
        {
            "labels": int((places == place).sum()),
            "mean_reward": round(float(scores[places == place].mean()), 4),
            "good": round(float(good[places == place].mean()), 4),
        }
        for place in range(bins)
        if (places == place).any()
    ]


@dataclass(slots=True)
class LabelledPath:
    """A path that ends in `<prm>`. `kind` is `numbers/lines so far`, with `/error` if an error is planted in it."""

    tokens: list[int]
    good: bool
    kind: str


@dataclass(slots=True)
class HeldOut:
    paths: list[LabelledPath]
    puzzles: dict[str, list[Puzzle]]


def held_out_data(count: int, batches: int, size: int) -> HeldOut:
    """Held-out puzzles and labelled steps: what `evaluate` judges by."""
    sets = {
        "game24": problems.game_of_24(4 * count, 1),
        "countdown4": problems.countdown_four(count, 1),
        **{f"generated{n}": problems.countdown_generated(max(count // 3, 1), n, n) for n in (4, 5, 6)},
    }
    made = [make_batch(size, batch_seed(REWARD_SEED, index), validation=True)[0].documents for index in range(batches)]
    return HeldOut([path for documents in made for path in labelled_paths(documents)], sets)


def labelled_paths(documents: Documents) -> list[LabelledPath]:
    paths = []
    for mark in np.flatnonzero(documents.tags):
        tag = int(documents.tags[mark]) - 1
        kind = f"{3 + tag // 16}/{tag % 16 // 2}" + ("/error" if tag & 1 else "")
        paths.append(LabelledPath(path_of(documents, int(mark)), int(documents.targets[mark].argmax()) == GOOD, kind))
    return paths


def step_reward(model: Any, paths: Sequence[LabelledPath]) -> dict[str, dict[str, Any]]:
    """AUC, mean, Brier score and reliability of the reward by kind of path, read as a search reads it: each in a row of
    its own."""
    scores = np.array(reward(model, [path.tokens for path in paths]))
    labels = np.array([path.good for path in paths])
    kinds = np.array([path.kind for path in paths])
    result: dict[str, dict[str, Any]] = {}
    for kind in sorted(set(kinds.tolist())):
        values, good = scores[kinds == kind], labels[kinds == kind]
        result[kind] = {
            "labels": len(values),
            "good": int(good.sum()),
            "auc": auc(values, good),
            "mean_reward": float(values.mean()),
            "brier": float(((values - good) ** 2).mean()),
            "reliability": reliability(values, good),
        }
    return result


def path_of(documents: Documents, mark: int) -> list[int]:
    """The tokens that token `mark` sees, itself included."""
    low = max(0, mark - MAX_DOCUMENT_SIZE)
    window = np.arange(low, mark + 1)
    seen = window[documents.ends[window] > mark]
    starts = np.flatnonzero(documents.tokens[seen] == BOS)
    return [int(token) for token in documents.tokens[seen[starts[-1] :]]]


@torch.no_grad()
def reward(model: Any, paths: Sequence[Sequence[int]], rows: int = 2048) -> list[float]:
    """P(<+>) over the two role tokens behind the last token of each path, in fp32."""
    order = sorted(range(len(paths)), key=lambda i: len(paths[i]))
    values = [0.0] * len(paths)
    for start in range(0, len(order), rows):
        part = order[start : start + rows]
        width = max(len(paths[i]) for i in part)
        ids = torch.full((len(part), width), PAD)
        for row, i in enumerate(part):
            ids[row, : len(paths[i])] = torch.tensor(paths[i])
        last = torch.tensor([len(paths[i]) - 1 for i in part])
        logits = model(input_ids=ids.to(model.device)).logits[torch.arange(len(part)), last].float()
        for i, value in zip(part, logits[:, [GOOD, BAD]].softmax(-1)[:, 0].tolist(), strict=True):
            values[i] = value
    return values


@torch.no_grad()
def write_paths(model: Any, prompts: Sequence[str], *, temperature: float | None, rows: int = 8192) -> list[list[int]]:
    """The tokens that the model writes to each prompt, up to `<eos>`. Greedy without a temperature."""
    paths: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), rows):
        part = order[start : start + rows]
        width = max(len(prompts[i]) for i in part) + 1
        ids = torch.full((len(part), width), PAD)
        for row, i in enumerate(part):
            encoded = [BOS, *(_IDS[c] for c in prompts[i])]
            ids[row, width - len(encoded) :] = torch.tensor(encoded)
        ids = ids.to(model.device)
        sampling = {"do_sample": False} if temperature is None else {"do_sample": True, "temperature": temperature}
        written = model.generate(
            input_ids=ids,
            attention_mask=(ids != PAD).long(),
            max_new_tokens=MAX_NEW_TOKENS,
            pad_token_id=PAD,
            eos_token_id=EOS,
            top_k=None if temperature is None else 0,
            top_p=None if temperature is None else 1.0,
            **sampling,
        )[:, width:].tolist()
        for row, i in enumerate(part):
            tokens = written[row]
            paths[i] = tokens[: tokens.index(EOS)] if EOS in tokens else tokens
    return paths


def legal_steps(puzzle: Puzzle, text: str) -> tuple[int, int]:
    """(legal lines, lines) of a path; a false line is counted and followed as it stands."""
    state: tuple[int, ...] = tuple(sorted(puzzle.numbers))
    legal = lines = 0
    for line in text.split("\n"):
        move = parse_move(line)
        lines += 1
        legal += move is not None and is_legal(move, state)
        if move is None:
            break
        state = move.state
    return legal, lines


def solve_rates(model: Any, sets: dict[str, list[Puzzle]]) -> dict[str, dict[str, Any]]:
    """Shares solved of each set: greedy; at the first of TEMPERATURES the path that the model's reward likes best of
    16, any of the 16, and a sample on average; best of 16 at every temperature; and the share of legal lines at
    temperature 1. All sets are written together."""
    puzzles = [puzzle for members in sets.values() for puzzle in members]
    tasks = [ArithmeticTask(puzzle) for puzzle in puzzles]
    verifiers = [ArithmeticVerifier(puzzle) for puzzle in puzzles]

    def right(i: int, path: list[int]) -> bool:
        answer = tasks[i].answer(decode(path))
        return answer is not None and verifiers[i].verify(answer)

    prompts = [task.prompt_text for task in tasks]
    greedy = np.array([right(i, path) for i, path in enumerate(write_paths(model, prompts, temperature=None))])
    owners = [i for i in range(len(puzzles)) for _ in range(SAMPLES)]

    def sample(temperature: float) -> tuple[NDArray[Any], NDArray[Any]]:
        """Whether each sample is right, and of each puzzle the one that the reward likes best."""
        sampled = write_paths(model, [prompts[i] for i in owners], temperature=temperature)
        ends = [[BOS, *(_IDS[c] for c in prompts[i]), *path, PRM] for i, path in zip(owners, sampled, strict=True)]
        rewards = np.array(reward(model, ends)).reshape(-1, SAMPLES)
        solved = np.array([right(i, path) for i, path in zip(owners, sampled, strict=True)]).reshape(-1, SAMPLES)
        return solved, solved[np.arange(len(puzzles)), rewards.argmax(1)]

    samples = [sample(temperature) for temperature in TEMPERATURES]
    solved, chosen = samples[0]
    free = write_paths(model, prompts, temperature=1.0)
    lines = np.array([legal_steps(puzzle, decode(path)) for puzzle, path in zip(puzzles, free, strict=True)])

    result: dict[str, dict[str, Any]] = {}
    start = 0
    for name, members in sets.items():
        part = slice(start, start + len(members))
        start += len(members)
        legal, written = lines[part].sum(0)
        result[name] = {
            "puzzles": len(members),
            "greedy": float(greedy[part].mean()),
            "best_of_16": float(chosen[part].mean()),
            "pass_at_16": float(solved[part].any(1).mean()),
            "sample_at_1": float(solved[part].mean()),
            "best_of_16_by_temperature": {
                str(temperature): float(best[part].mean())
                for temperature, (_, best) in zip(TEMPERATURES, samples, strict=True)
            },
            "legal_lines_at_t1": float(legal / written),
        }
    return result


def evaluate(model: Any, data: HeldOut) -> dict[str, Any]:
    """How the reward ranks, and the solve rates of every set."""
    torch.manual_seed(0)
    return {"reward": step_reward(model, data.paths), "solved": solve_rates(model, data.puzzles)}


def read_puzzles(path: Path) -> list[Puzzle]:
    """Game-of-24 rows `4 5 6 10,…`; lines that start with # are skipped."""
    rows = [line.split(",")[0].split() for line in path.read_text().splitlines() if line and line[0] != "#"]
    return [Puzzle(tuple(map(int, row)), 24) for row in rows]


def main() -> None:
    from transformers import AutoModelForCausalLM

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--puzzles", type=Path, help="Game-of-24 puzzles to solve instead")
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    if options.puzzles:
        torch.manual_seed(0)
        print(json.dumps(solve_rates(model, {options.puzzles.stem: read_puzzles(options.puzzles)}), indent=2))
    else:
        print(json.dumps(evaluate(model, held_out_data(options.count, 1, REWARD_TOKENS)), indent=2))


if __name__ == "__main__":
    main()
