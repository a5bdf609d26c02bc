"""The same step by other programs: seconds a step."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
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
    """llama.cpp's own batched benchmark on a GGUF file, with a shared prompt: the faster of its two caches.

    One cache that all sequences share holds the prompt once, but each row looks at the cells of all; caches apart copy
    the prompt. It generates 2 · `suffix` tokens a branch, so that `suffix` is the mean; `steps` is not used.
    """
    program = shutil.which("llama-batched-bench")
    if program is None:
        raise Skipped("llama-batched-bench is not installed")
    if not loaded.source.endswith(".gguf"):
        raise Skipped("llama.cpp reads GGUF files only: pass --model FILE.gguf")
    new = max(1, 2 * suffix)
    apart = batch * -(-(prefix + new + 1) // 256) * 256  # one more, as its copying writes a token; it rounds to 256
    times, failures = [], []
    for cache in (["-kvu", "-c", str(prefix + batch * new + 256)], ["-c", str(apart)]):
        try:
            times.append(_batched_bench(program, loaded.source, batch, prefix, new, cache))
        except Skipped as failure:
            failures.append(failure)
    if not times:
        raise failures[-1]
    return min(times)


def _batched_bench(program: str, model: str, batch: int, prefix: int, new: int, cache: Sequence[str]) -> float:
    call = [
        program, "-m", model, "-npp", str(prefix), "-ntg", str(new), "-npl", str(batch), "-pps",
        "-t", str(torch.get_num_threads()), "--output-format", "jsonl", *cache,
    ]  # fmt: skip
    done = subprocess.run(call, capture_output=True, text=True, errors="replace", check=False)
    results = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not results:
        said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise Skipped(", ".join([f"llama-batched-bench failed: status {done.returncode}", *said[-1:]]))
    return float(json.loads(results[-1])["t_tg"]) / new


BASELINES: dict[str, Callable[[LoadedModel, int, int, int, int], float]] = {
    "hf": hugging_face,
    "llamacpp": llama_cpp,
}
