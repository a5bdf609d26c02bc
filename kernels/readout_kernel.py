"""The readout of plain sampling in two launches: the logits are read once, and one chunk of each row once more.

The first launch sums up each chunk of each row; the second finds the chunk in which the cumulative distribution passes
the row's uniform number, and in it the token. `frtool.engine.sampling` defines the numbers, up to the rounding of sums.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_CHUNK = 2048
_STATS = 5


@triton.jit
def _allowed(x, at, suppressed, SUPPRESSED: tl.constexpr):
    """Logits with those of the suppressed tokens at -inf."""
    for i in tl.static_range(SUPPRESSED):
        x = tl.where(at == tl.load(suppressed + i), float("-inf"), x)
    return x


@triton.jit
def _sum_chunks(
    logits, stride, stats, suppressed, inverse, VOCAB: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
    SUPPRESSED: tl.constexpr,
):  # fmt: skip
    """stats [T, 5, CHUNKS]: maximum and sum of exp(x - maximum) of all tokens; of the allowed ones the maximum, the
    sum of exp((x - maximum) * inverse), and the first token that has it."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(logits + row * stride + at, mask=at < VOCAB, other=float("-inf")).to(tl.float32)
    high = tl.max(x, 0)
    total = tl.sum(tl.exp(x - tl.where(high == float("-inf"), 0.0, high)), 0)
    y = _allowed(x, at, suppressed, SUPPRESSED)
    peak = tl.max(y, 0)
    mass = tl.sum(tl.exp((y - tl.where(peak == float("-inf"), 0.0, peak)) * inverse), 0)
    first = tl.min(tl.where(y == peak, at, VOCAB - 1), 0)
    place = stats + row * (5 * CHUNKS) + chunk
    tl.store(place, high)
    tl.store(place + CHUNKS, total)
    tl.store(place + 2 * CHUNKS, peak)
    tl.store(place + 3 * CHUNKS, mass)
    tl.store(place + 4 * CHUNKS, first.to(tl.float32))


@triton.jit
def _draw(
    logits, stride, stats, uniforms, suppressed, ends, labels, values, values_stride, tokens, inverse,
    VOCAB: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr, CHUNKS_PAD: tl.constexpr,
    SUPPRESSED: tl.constexpr, ENDS: tl.constexpr, LABELS: tl.constexpr, GREEDY: tl.constexpr,
):  # fmt: skip
    """One row: its token, log-probability, probability of an end and of the good label, and the token's interval."""
    row = tl.program_id(0).to(tl.int64)
    chunks = tl.arange(0, CHUNKS_PAD)
    there = chunks < CHUNKS
    place = stats + row * (5 * CHUNKS) + chunks
    high = tl.load(place, mask=there, other=float("-inf"))
    total = tl.load(place + CHUNKS, mask=there, other=0.0)
    peak = tl.load(place + 2 * CHUNKS, mask=there, other=float("-inf"))
    top = tl.max(high, 0)
    log_sum = top + tl.log(tl.sum(total * tl.exp(high - top), 0))
    best = tl.max(peak, 0)
    first = tl.load(place + 4 * CHUNKS, mask=there, other=0.0)
    token = tl.min(tl.where(peak == best, first, VOCAB - 1.0), 0).to(tl.int32)
    if not GREEDY:
        uniform = tl.load(uniforms + row)
        mass = tl.load(place + 3 * CHUNKS, mask=there, other=0.0) * tl.exp((peak - best) * inverse)
        rising = tl.cumsum(mass, 0)
        whole = tl.max(rising, 0)
        target = uniform * whole
        # Rounding may lift the target to the sum itself: never beyond the last that has any mass.
        chunk = tl.minimum(tl.sum((rising <= target).to(tl.int32), 0), tl.max(tl.where(mass > 0, chunks, 0), 0))
        before = tl.max(tl.where(chunks < chunk, rising, 0.0), 0)
        at = chunk * CHUNK + tl.arange(0, CHUNK)
        x = tl.load(logits + row * stride + at, mask=at < VOCAB, other=float("-inf")).to(tl.float32)
        weight = tl.exp((_allowed(x, at, suppressed, SUPPRESSED) - best) * inverse)
        inside = tl.cumsum(weight, 0)
        passed = tl.sum((inside <= target - before).to(tl.int32), 0)
        last = tl.max(tl.where(weight > 0, tl.arange(0, CHUNK), 0), 0)
        place = tl.minimum(passed, last)
        drawn = tl.minimum(chunk * CHUNK + place, VOCAB - 1)
        # FORCED and what stands for tokens: see frtool.engine.noise.
        known = tl.where(uniform > -2.0, token, (-2.0 - uniform).to(tl.int32))
        token = tl.where(uniform < 0, known, drawn)
        at = tl.arange(0, CHUNK)
        low = (before + tl.max(tl.where(at < place, inside, 0.0), 0)) / whole
        high = (before + tl.max(tl.where(at <= place, inside, 0.0), 0)) / whole
        tl.store(values + 4 * values_stride + row, tl.where(uniform < 0, 0.0, low))
        tl.store(values + 5 * values_stride + row, tl.where(uniform < 0, 0.0, high))
    else:
        tl.store(values + 4 * values_stride + row, 0.0)
        tl.store(values + 5 * values_stride + row, 0.0)
    token = tl.maximum(token, 0)
    tl.store(tokens + row, token.to(tl.int64))
    tl.store(values + row, token.to(tl.float32))
    own = tl.load(logits + row * stride + token).to(tl.float32)
    tl.store(values + values_stride + row, own - log_sum)
    end = 0.0
    for i in tl.static_range(ENDS):
        end += tl.exp(tl.load(logits + row * stride + tl.load(ends + i)).to(tl.float32) - log_sum)
    tl.store(values + 2 * values_stride + row, end)
    if LABELS:
        good = tl.load(logits + row * stride + tl.load(labels)).to(tl.float32)
        bad = tl.load(logits + row * stride + tl.load(labels + 1)).to(tl.float32)
        tl.store(values + 3 * values_stride + row, 1.0 / (1.0 + tl.exp(bad - good)))


def read_rows(
    logits: torch.Tensor,
    uniforms: torch.Tensor,
    temperature: float,
    suppressed: torch.Tensor,
    ends: torch.Tensor,
    labels: torch.Tensor,
    values: torch.Tensor,
    tokens: torch.Tensor,
) -> None:
    """Fill `values` float32 `[6, n]` and `tokens` int64 `[n]` from logits `[n, vocab]` of any float type.

    Tokens are drawn by inverting the cumulative distribution at `temperature` (0: the likeliest) with `uniforms`
    float32 `[n]` in (0, 1), -1 where the likeliest is wanted, -2 - t where token t is; `suppressed` ones are not drawn.
    The rows of `values`: the token; its log-probability at temperature 1, nothing suppressed; the probability of all
    `ends`; of the two `labels` (good and bad, or none: left as it is), the share of the first; the bounds of the
    numbers that draw the token, both 0 where none was drawn. Token ids are int64 on the device.
    """
    rows, vocab = logits.shape
    chunks = -(-vocab // _CHUNK)
    stats = torch.empty(rows, _STATS, chunks, dtype=torch.float32, device=logits.device)
    inverse = 1.0 / temperature if temperature else 1.0
    sizes = {"VOCAB": vocab, "CHUNK": _CHUNK, "CHUNKS": chunks, "SUPPRESSED": len(suppressed)}
    _sum_chunks[(rows, chunks)](logits, logits.stride(0), stats, suppressed, inverse, **sizes, num_warps=4)
    _draw[(rows,)](
        logits, logits.stride(0), stats, uniforms, suppressed, ends, labels, values, values.stride(0), tokens, inverse,
        **sizes, CHUNKS_PAD=max(2, 1 << (chunks - 1).bit_length()), ENDS=len(ends), LABELS=len(labels) > 0,
        GREEDY=temperature == 0, num_warps=8,
    )  # fmt: skip
