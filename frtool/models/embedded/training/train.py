"""Train the arithmetic reasoner on one GPU or several, in a fixed time, from data made on the fly.

python -m frtool.models.embedded.training.train --out DIRECTORY --seconds 1200
torchrun --standalone --nproc-per-node 2 -m frtool.models.embedded.training.train --out DIRECTORY --seconds 600

Writes the checkpoint before it evaluates, and `training.json`: settings, machine, loss and validation over time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .batches import BatchStream, batch_seed, empty_batch, make_batch
from .checkpoint import load_weights, write_checkpoint, write_parts
from .evaluate import evaluate, held_out_data
from .network import DeviceBatch, Reasoner, Shape, losses, tree_mask
from .optimizer import Muon, rate_at
from .ranks import Ranks
from .vocabulary import BAD, GOOD

VALIDATION_SEED = 1_000_003
LOG_EVERY = 100
REWARD_BATCHES = 4
PROGRESS_EVERY = 10
"""Steps between looks at the clock, which all processes must agree about."""


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", type=Path, default=None, help="go on from the weights in this directory")
    parser.add_argument("--seconds", type=float, default=1200, help="training time, compilation not counted")
    parser.add_argument("--steps", type=int, default=None, help="stop after so many steps, whatever the time")
    parser.add_argument("--tokens", type=int, default=131_072, help="tokens a step, in each process")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=7, help="processes that make data, for each that trains")
    parser.add_argument("--matrix-rate", type=float, default=0.012)
    parser.add_argument("--vector-rate", type=float, default=0.002)
    parser.add_argument("--decay", type=float, default=0.85, help="share of the time over which the rates fall to 0")
    parser.add_argument(
        "--first-moves", type=float, default=0.4, help="share of the tokens in documents that show first moves alone"
    )
    parser.add_argument("--reward-weight", type=float, default=10.0)
    parser.add_argument("--layers", type=int, default=Shape().num_hidden_layers)
    parser.add_argument("--width", type=int, default=Shape().hidden_size)
    parser.add_argument("--part-mib", type=float, default=None, help="write bare weights in parts of this size")
    parser.add_argument("--evaluate", type=int, default=120, help="puzzles of each set in the closing evaluation")
    return parser.parse_args(arguments)


class Aside:
    """What validation and evaluation need, made in a process of its own while the GPU is busy."""

    def __init__(self, size: int, count: int) -> None:
        context = multiprocessing.get_context("fork")
        self._queue: Any = context.Queue()
        self._process = context.Process(target=self._make, args=(size, count), daemon=True)
        self._process.start()

    def _make(self, size: int, count: int) -> None:
        self._queue.put(make_batch(size, batch_seed(VALIDATION_SEED, 0), validation=True)[0])
        self._queue.put(held_out_data(count, REWARD_BATCHES, size))

    def next(self) -> Any:
        """The validation batch first, then the evaluation's data."""
        return self._queue.get()

    def close(self) -> None:
        self._process.terminate()
        self._process.join()


def measure(model: nn.Module, batch: DeviceBatch) -> dict[str, Any]:
    """Losses on a held-out batch, and how often the reward is on the right side, by `numbers/lines so far`.

    Gradients stay on: without them the compiled layers would be compiled again.
    """
    with torch.autocast(batch.ends.device.type, torch.bfloat16):
        logits = model(batch, tree_mask(batch)).detach().float()
    _, policy, reward = losses(logits, batch.targets, batch.weights, batch.tags, 1.0)
    marked = batch.tags > 0
    good = batch.targets[marked][:, GOOD] > 0
    right = (logits[marked][:, GOOD] > logits[marked][:, BAD]) == good
    kinds = batch.tags[marked].long() - 1
    by_kind = {
        f"{3 + kind // 16}/{kind % 16 // 2}": round(float(right[kinds == kind].float().mean()), 4)
        for kind in sorted(set(kinds.tolist()))
        if not kind & 1
    }
    return {"policy": float(policy), "reward": float(reward), "reward_right": by_kind}


def train(options: argparse.Namespace) -> dict[str, Any]:
    started = time.monotonic()
    ranks = Ranks.of_environment()
    # Both fork, so they come before CUDA is touched.
    aside = Aside(options.tokens, options.evaluate) if ranks.first else None
    stream = BatchStream(
        options.tokens,
        options.seed,
        options.workers,
        2 * options.workers + 4,
        options.first_moves,
        rank=ranks.rank,
        world=ranks.world,
    )
    try:
        return _train(options, ranks, stream, aside, started)
    finally:
        stream.close()
        if aside is not None:
            aside.close()
        ranks.leave()


def _train(
    options: argparse.Namespace, ranks: Ranks, stream: BatchStream, aside: Aside | None, started: float
) -> dict[str, Any]:
    device = ranks.device()
    ranks.join(device)
    torch.manual_seed(options.seed)
    torch.set_float32_matmul_precision("high")
    shape = Shape(num_hidden_layers=options.layers, hidden_size=options.width)
    model = Reasoner(shape)
    if options.init is not None:
        load_weights(model, options.init)
    model.to(device)
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    parameters = list(model.parameters())
    muon = Muon(matrices)
    adam = torch.optim.AdamW(vectors, lr=options.vector_rate, betas=(0.9, 0.95), weight_decay=0.0)
    measure_losses = losses
    if device.type == "cuda":
        for layer in model.model.layers:
            layer.compile(dynamic=False, fullgraph=True)
        model.model.norm.compile(dynamic=False, fullgraph=True)
        measure_losses = torch.compile(losses, dynamic=False)

    arriving = iter(stream)
    side: Any = torch.cuda.Stream() if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def take() -> tuple[DeviceBatch, int]:
        batch, documents, give_back = next(arriving)
        if side is None:
            moved = DeviceBatch.of(batch, device)
        else:
            with torch.cuda.stream(side):
                moved = DeviceBatch.of(batch, device)
            torch.cuda.current_stream().wait_stream(side)
            for name in DeviceBatch.__slots__:
                getattr(moved, name).record_stream(torch.cuda.current_stream())
        give_back()
        return moved, documents

    def step(batch: DeviceBatch, rate: float) -> tuple[Tensor, Tensor]:
        with torch.autocast(device.type, torch.bfloat16):
            logits = model(batch, tree_mask(batch))
        total, policy, reward = measure_losses(logits, batch.targets, batch.weights, batch.tags, options.reward_weight)
        total.backward()  # type: ignore[no-untyped-call]
        ranks.average_gradients(parameters)
        muon.step(options.matrix_rate * rate)
        for group in adam.param_groups:
            group["lr"] = options.vector_rate * rate
        adam.step()
        adam.zero_grad(set_to_none=True)
        return policy.detach(), reward.detach()

    history: list[dict[str, Any]] = []
    puzzles = done = waited = 0
    step(DeviceBatch.of(empty_batch(options.tokens), device), 0.0)
    print(f"compiled after {time.monotonic() - started:.1f} s", flush=True)
    following, documents = take()
    held_out = DeviceBatch.of(aside.next(), device) if aside is not None else None
    print(f"first data after {time.monotonic() - started:.1f} s", flush=True)
    ranks.agree(0.0, device)
    begun = logged = time.monotonic()
    startup = begun - started
    progress = 0.0
    while True:
        if done % PROGRESS_EVERY == 0:
            progress = ranks.agree((time.monotonic() - begun) / options.seconds, device)
        if options.steps is not None:
            progress = max(progress, done / options.steps)
        if progress >= 1.0:
            break
        current, puzzles = following, puzzles + documents
        policy, reward = step(current, rate_at(progress, warm=0.01, decay=options.decay))
        waited += stream.ready == 0
        following, documents = take()
        done += 1
        if held_out is not None and done % LOG_EVERY == 0:
            now = time.monotonic()
            entry = {
                "step": done,
                "seconds": round(now - begun, 1),
                "rate": round(rate_at(progress, warm=0.01, decay=options.decay), 4),
                "policy": float(policy),
                "reward": float(reward),
                "tokens_per_second": round(LOG_EVERY * options.tokens * ranks.world / (now - logged)),
                "waited_for_data": waited,
            }
            if done % (10 * LOG_EVERY) == 0:
                entry["validation"] = measure(model, held_out)
            logged, waited = time.monotonic(), 0
            history.append(entry)
            print(json.dumps(entry), flush=True)
    if device.type == "cuda":
        torch.cuda.synchronize()
    elapsed = time.monotonic() - begun
    ranks.leave()
    if aside is None or held_out is None:
        return {}

    final = measure(model, held_out)
    print(json.dumps({"final": final}), flush=True)
    tensors = model.checkpoint(torch.bfloat16)
    if options.part_mib is None:
        write_checkpoint(options.out, tensors, shape)
    else:
        write_parts(options.out, tensors, int(options.part_mib * 2**20))
    record: dict[str, Any] = {
        "settings": {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()},
        "shape": asdict(shape),
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        "processes": ranks.world,
        "torch": torch.__version__,
        "startup_seconds": round(startup, 1),
        "training_seconds": round(elapsed, 1),
        "steps": done,
        "tokens": done * options.tokens * ranks.world,
        "puzzles": puzzles * ranks.world,
        "validation": final,
        "history": history,
    }
    _write(options.out, record)
    if options.evaluate:
        stream.close()
        record["evaluation"] = evaluate(as_llama(tensors, shape, device), aside.next())
        _write(options.out, record)
    return record


def as_llama(tensors: dict[str, torch.Tensor], shape: Shape, device: torch.device) -> Any:
    """The transformers model of these weights, in their dtype."""
    from transformers import LlamaConfig, LlamaForCausalLM

    dtype = next(iter(tensors.values())).dtype
    model = LlamaForCausalLM(LlamaConfig(**shape.llama_config())).to(dtype)
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    if set(missing) - {"lm_head.weight"} or unexpected:
        raise RuntimeError(f"not a checkpoint of this shape: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    return model.to(device).eval()


def _write(directory: Path, record: dict[str, Any]) -> None:
    (directory / "training.json").write_text(json.dumps(record, indent=1) + "\n")


def main() -> None:
    record = train(options_of())
    if not record:
        return
    summary = {key: record[key] for key in ("steps", "tokens", "puzzles", "startup_seconds", "training_seconds")}
    print(json.dumps({**summary, "evaluation": record.get("evaluation")}), flush=True)


if __name__ == "__main__":
    main()
