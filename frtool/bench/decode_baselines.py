"""The same step by other programs: seconds a step."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from statistics import median

import torch

from frtool.engine.pool import block_bytes
from frtool.models.load import LoadedModel
from frtool.models.memory import free_memory


class Skipped(Exception):
    """Why a baseline has no figure here."""


@torch.inference_mode()
def hugging_face(loaded: LoadedModel, batch: int, prefix: int, suffix: int, steps: int) -> float:
    """transformers with a cache of its own for each branch, as `generate` drives it: sdpa attention, greedy."""
    from transformers import DynamicCache

    past = prefix + suffix - steps // 2
    needed = batch * (past + steps) * block_bytes(loaded, 1)
    free = free_memory(loaded.device)
    if 1.2 * needed > free:
        raise Skipped(
            f"{batch} branches need {needed / 1e9:.1f} GB of linear KV and room to append, {free / 1e9:.1f} GB are free"
        )
    model, device = loaded.model, loaded.device
    cache = DynamicCache()
    shape = (batch, loaded.num_kv_heads, past, loaded.head_dim)
    for layer in range(loaded.num_layers):
        cache.update(*(torch.randn(shape, dtype=loaded.dtype, device=device) for _ in range(2)), layer)
    before = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    try:
        tokens = torch.zeros(batch, 1, dtype=torch.long, device=device)
        times = []
        for step in range(steps):
            started = time.perf_counter()
            position = torch.full((batch, 1), past + step, device=device)
            logits = model(tokens, past_key_values=cache, use_cache=True, position_ids=position).logits
            tokens = logits[:, -1].argmax(-1, keepdim=True)
            tokens.tolist()
            times.append(time.perf_counter() - started)
    except torch.OutOfMemoryError:
        raise Skipped(f"{batch} branches do not fit into the memory of {device}") from None
    finally:
        model.set_attn_implementation(before)
    return median(times)


def llama_cpp(loaded: LoadedModel, batch: int, prefix: int, suffix: int, steps: int) -> float:
    """llama.cpp's own batched benchmark with a shared prompt, on a GGUF file."""
    program = shutil.which("llama-batched-bench")
    if program is None:
        raise Skipped("llama-batched-bench is not installed")
    if not loaded.source.endswith(".gguf"):
        raise Skipped("llama.cpp reads GGUF files only: pass --model FILE.gguf")
    new = suffix + steps
    call = [
        program, "-m", loaded.source, "-c", str(prefix + batch * new + 64), "-npp", str(prefix), "-ntg", str(new),
        "-npl", str(batch), "-pps", "-t", str(torch.get_num_threads()), "--output-format", "jsonl",
    ]  # fmt: skip
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise Skipped(f"llama-batched-bench failed with status {done.returncode}")
    return float(json.loads(lines[-1])["t_tg"]) / new


BASELINES: dict[str, Callable[[LoadedModel, int, int, int, int], float]] = {
    "hf": hugging_face,
    "llamacpp": llama_cpp,
}
