"""A tile of queries over a list of KV entries: the inner loop of tree attention, and where its result goes.

Row r of a tile is query r // GROUP_PAD, head r % GROUP_PAD of the kv head's group. An entry is a block, or a part of
one: ENTRY tokens. All addresses are int64.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

LOG2E = tl.constexpr(1.4426950408889634)
# kind, first entry, full keys, keys, first group, groups, owners lo (narrow: 1 if a merge item merges) and hi, then for
# up to eight groups: the slot of this item's partial result, the group's first slot, its number of parts. A cache line.
ITEM_FIELDS = tl.constexpr(32)
SLOT = tl.constexpr(8)
FIRST_SLOT = tl.constexpr(16)
PARTS = tl.constexpr(24)


@triton.jit
def _capped(s, softcap):
    """softcap * tanh(s / softcap) in fp32."""
    x = s / softcap
    e = tl.exp2(tl.abs(x) * -2.0 * LOG2E)
    far = (1.0 - e) / (1.0 + e)
    far = tl.where(x < 0, -far, far)
    y = x * x  # near zero the quotient cancels: an odd series instead
    near = x * (1.0 + y * (-1.0 / 3 + y * (2.0 / 15 + y * (-17.0 / 315 + y * (62.0 / 2835)))))
    return softcap * tl.where(tl.abs(x) < 0.2, near, far)


@triton.jit
def _ahead(entry_block, entry_mark, first, start, KEYS: tl.constexpr, ENTRY: tl.constexpr, MASKED: tl.constexpr):
    """What the round at key `start` reads by: of each key the entry, its block and its mark."""
    keys = tl.arange(0, KEYS)
    if KEYS % ENTRY == 0:
        entry = first + start // ENTRY + keys // ENTRY
    else:
        entry = first + ((start + keys).to(tl.uint32) // ENTRY).to(tl.int32)
    block = tl.load(entry_block + entry)
    mark = block.to(tl.int64)
    if MASKED:
        mark = tl.load(entry_mark + entry)
    return entry, block, mark


@triton.jit
def _rounds(
    q_tile, acc, high, total, k_head, v_head, entry_block, entry_mark, entry, block, mark, first, start, stop,
    local, position, oldest, scale, softcap, window,
    TOKEN: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, ENTRY: tl.constexpr, KEYS: tl.constexpr,
    STAGES: tl.constexpr, MASKED: tl.constexpr, LATE_SUM: tl.constexpr, HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):  # fmt: skip
    """Online softmax over keys `start` to `stop` of the item's entries, KEYS a round.

    acc [ROWS, D_PAD], high [ROWS] the maximum of the base-2 logits, total the sum of weights: [ROWS], or with LATE_SUM
    [ROWS, KEYS], to be summed after the last round. entry, block, mark: `_ahead` of the first round. Returns the three.
    """
    keys = tl.arange(0, KEYS)
    dims = tl.arange(0, D_PAD)
    slope = LOG2E if HAS_SOFTCAP else scale * LOG2E
    # What a round reads by is fetched one round ahead, so that K and V are pipelined as if their addresses were plain.
    # Where rounds begin at block bounds, a key's offset in its block never changes.
    if KEYS % ENTRY == 0:
        offset = keys % ENTRY
    for at in tl.range(start, stop, KEYS, num_stages=STAGES):
        index = at + keys
        if KEYS % ENTRY != 0:
            offset = (index.to(tl.uint32) % ENTRY).to(tl.int32)
        place = block.to(tl.int64)[:, None] * (ENTRY * TOKEN) + (offset * TOKEN)[:, None]
        now = entry
        if KEYS % ENTRY == 0:
            entry += KEYS // ENTRY
        else:
            entry = first + ((index + KEYS).to(tl.uint32) // ENTRY).to(tl.int32)
        block = tl.load(entry_block + entry)
        if MASKED:
            held = (index < stop) & (offset < ((mark >> 16) & 0xFFFF).to(tl.int32))
            if HAS_WINDOW:
                held &= (mark >> 32).to(tl.int32) + offset > oldest
            mark = tl.load(entry_mark + entry)
            key_mask = held[:, None] & (dims < D)[None, :]
            k_tile = tl.load(k_head + place, mask=key_mask, other=0.0)
            v_tile = tl.load(v_head + place, mask=key_mask, other=0.0)
        elif D != D_PAD:
            k_tile = tl.load(k_head + place, mask=(dims < D)[None, :], other=0.0)
            v_tile = tl.load(v_head + place, mask=(dims < D)[None, :], other=0.0)
        else:
            k_tile = tl.load(k_head + place)
            v_tile = tl.load(v_head + place)
        if stop > start:  # always: the pipeliner starts the loads of later rounds before a conditional, not after it
            s = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee")
            if HAS_SOFTCAP:
                s = _capped(s * scale, softcap)
            if MASKED:
                seen_by = tl.load(entry_mark + now)  # again: near by now, and in the layout of the scores
                lower = (seen_by & 255).to(tl.int32)
                owners = ((seen_by >> 8) & 255).to(tl.int32)
                key_pos = (seen_by >> 32).to(tl.int32) + offset
                inside = (index < stop) & (offset < ((seen_by >> 16) & 0xFFFF).to(tl.int32))
                if HAS_WINDOW:
                    inside &= key_pos > oldest
                owners = tl.where(inside, owners, 0).to(tl.uint32)
                seen = (local[:, None] - lower[None, :]).to(tl.uint32) < owners[None, :]
                seen &= key_pos[None, :] <= position[:, None]
                if HAS_WINDOW:
                    seen &= key_pos[None, :] > position[:, None] - window
                s = tl.where(seen, s, float("-inf"))
            top = tl.maximum(high, tl.max(s, 1) * slope)
            if MASKED:  # noqa: SIM108
                pivot = tl.where(top == float("-inf"), 0.0, top)  # a row may have seen nothing yet
            else:
                pivot = top
            p = tl.exp2(s * slope - pivot[:, None])
            decay = tl.exp2(high - pivot)
            if LATE_SUM:  # noqa: SIM108
                total = total * decay[:, None] + p
            else:
                total = total * decay + tl.sum(p, 1)
            acc *= decay[:, None]
            acc = tl.dot(p.to(v_tile.dtype), v_tile, acc, input_precision="ieee")
            high = top
    return acc, high, total


@triton.jit
def await_previous(EARLY: tl.constexpr):
    """For a launch that starts while the kernel before it ends: go on when that is over. It may have written q, K and V
    and used the same work buffers, but not the tables.

    A launch of up to EARLY programs lets the next one start at once, beside it. Beside a larger one the next would take
    what room comes free first, and crowd there. With 0 nothing starts early."""
    if EARLY > 0:
        gdc_wait()
        if tl.num_programs(0) <= EARLY:
            gdc_launch_dependents()


@triton.jit
def row_tokens(
    query_token, record, head, rows, GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, GROUP_ROWS: tl.constexpr,
    CACHE: tl.constexpr,
):  # fmt: skip
    """Of an item's rows: which are real, their int64 query token, their query head.

    Called before the rounds and, with another cache modifier so that the compiler does not merge the loads, after
    them: values kept in registers from one to the other would make the rounds spill.
    """
    group0 = tl.load(record + 4, cache_modifier=CACHE)
    groups = tl.load(record + 5, cache_modifier=CACHE)
    query = group0 * (GROUP_ROWS // GROUP_PAD) + rows // GROUP_PAD
    token = tl.load(query_token + query, cache_modifier=CACHE)
    live = (token >= 0) & (rows % GROUP_PAD < GROUP) & (rows < groups * GROUP_ROWS)
    return live, tl.maximum(token, 0).to(tl.int64), head * GROUP + rows % GROUP_PAD


@triton.jit
def leave_result(
    acc, high, total, out, partial, partial_lse, sinks, record, parts, slot, query_token, head,
    out_stride_t, out_stride_h,
    HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
    GROUP_ROWS: tl.constexpr, ROWS: tl.constexpr, HAS_SINKS: tl.constexpr,
):  # fmt: skip
    """Store the result of a record's rows, or a partial one in `slot` where other parts add to it. parts, slot: [ROWS],
    or of all rows."""
    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, D_PAD)
    live, token, q_head = row_tokens(query_token, record, head, rows, GROUP, GROUP_PAD, GROUP_ROWS, ".ca")
    parts = tl.where(live, parts, 0)
    alone = parts == 1
    spread = parts > 1
    norm = tl.where(total == 0.0, 1.0, total)
    if HAS_SINKS:  # a sink joins the denominator once: here if there is no merge
        sink = tl.load(sinks + q_head, mask=live, other=0.0).to(tl.float32) * LOG2E
        peak = tl.maximum(high, sink)
        norm = tl.where(alone, total * tl.exp2(high - peak) + tl.exp2(sink - peak), norm)
        acc *= tl.where(alone, tl.exp2(high - peak), 1.0)[:, None]
    result = (acc * (1.0 / norm)[:, None]).to(out.dtype.element_ty)
    tl.store(
        out + token[:, None] * out_stride_t + q_head[:, None] * out_stride_h + dims[None, :],
        result, mask=alone[:, None] & (dims < D)[None, :],
    )  # fmt: skip
    cell = (slot.to(tl.int64) * HEADS + head) * GROUP_ROWS + rows % GROUP_ROWS
    tl.store(partial_lse + cell, tl.where(total == 0.0, float("-inf"), high + tl.log2(norm)), mask=spread)
    tl.store(partial + cell[:, None] * D_PAD + dims[None, :], result, mask=spread[:, None])


@triton.jit
def attend_tile(
    q, k_cache, v_cache, record, entry_block, entry_mark, query_token, query_pos, head,
    q_stride_t, q_stride_h, scale, softcap, window,
    HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
    ENTRY: tl.constexpr, GROUP_ROWS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr,
    EDGE_KEYS: tl.constexpr, EDGE_STAGES: tl.constexpr, IS_WIDE: tl.constexpr, EARLY: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
):  # fmt: skip
    """Attend an item's ROWS query rows to its keys. Returns acc [ROWS, D_PAD], high and total [ROWS]. EARLY: see
    `await_previous`."""
    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, D_PAD)
    local = rows // GROUP_PAD
    first = tl.load(record + 1)
    entry, block, mark = _ahead(entry_block, entry_mark, first, 0, KEYS, ENTRY, not IS_WIDE)
    live, token, q_head = row_tokens(query_token, record, head, rows, GROUP, GROUP_PAD, GROUP_ROWS, "")
    await_previous(EARLY)
    q_tile = tl.load(
        q + token[:, None] * q_stride_t + q_head[:, None] * q_stride_h + dims[None, :],
        mask=live[:, None] & (dims < D)[None, :], other=0.0,
    )  # fmt: skip
    k_head = k_cache + head * D + dims[None, :]
    v_head = v_cache + head * D + dims[None, :]
    acc = tl.zeros([ROWS, D_PAD], tl.float32)
    high = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    full = 0
    if IS_WIDE and not HAS_WINDOW:
        # Keys that all owners see in full come first and need no mask.
        full = tl.load(record + 2)
        acc, high, total = _rounds(
            q_tile, acc, high, total, k_head, v_head, entry_block, entry_mark, entry, block, mark, first, 0, full,
            local, local, 0, scale, softcap, window, HEADS * D, D, D_PAD, ENTRY, KEYS, STAGES,
            False, False, False, HAS_SOFTCAP,
        )  # fmt: skip
        owner = (local >= tl.load(record + 6)) & (local < tl.load(record + 7))
        acc = tl.where(owner[:, None], acc, 0.0)
        total = tl.where(owner, total, 0.0)
        high = tl.where(owner, high, float("-inf"))
    stop = tl.load(record + 3)
    position = tl.load(query_pos + tl.load(record + 4) * (GROUP_ROWS // GROUP_PAD) + local)
    oldest = 0
    if HAS_WINDOW:
        oldest = tl.min(tl.where(live, position, 2147483647), 0) - window
    if IS_WIDE:
        if full < stop:
            at, edge, marked = _ahead(entry_block, entry_mark, first, full, EDGE_KEYS, ENTRY, True)
            acc, high, total = _rounds(
                q_tile, acc, high, total, k_head, v_head, entry_block, entry_mark, at, edge, marked, first, full,
                stop, local, position, oldest, scale, softcap, window, HEADS * D, D, D_PAD, ENTRY, EDGE_KEYS,
                EDGE_STAGES, True, False, HAS_WINDOW, HAS_SOFTCAP,
            )  # fmt: skip
    else:
        late = tl.zeros([ROWS, KEYS], tl.float32)
        acc, high, late = _rounds(
            q_tile, acc, high, late, k_head, v_head, entry_block, entry_mark, entry, block, mark, first, 0, stop,
            local, position, oldest, scale, softcap, window, HEADS * D, D, D_PAD, ENTRY, KEYS, STAGES,
            True, True, HAS_WINDOW, HAS_SOFTCAP,
        )  # fmt: skip
        total = tl.sum(late, 1)
    return acc, high, total
