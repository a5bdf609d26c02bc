"""The jit kernel of tree attention: one launch that attends, splits and merges. `reference` defines the numbers.

A program takes one work item (see `schedule`) for one kv head. An item is a tile of query rows and a list of KV
blocks, each block with the queries that own it. Wide tiles take blocks that many queries share, at tensor-core rate;
narrow tiles stream private blocks at memory rate; both run side by side in one launch. Rows whose keys are spread over
several items leave normalised partial results with a base-2 log-sum-exp, and the last item to arrive merges them in
the order of their slots, so results do not depend on who was last. Arrival counters return to zero.

Row r of a tile is query r // GROUP_PAD, head r % GROUP_PAD of the kv head's group. All addresses are int64.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
ITEM_FIELDS = tl.constexpr(10)  # kind, first entry, full keys, keys, first group, groups, first slot, owners lo and hi
NARROW = tl.constexpr(1)
WIDE = tl.constexpr(2)


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
def _rounds(
    q_tile, acc, high, total, k_head, v_head, entry_block, entry_base, entry_meta, first, start, stop,
    local, position, oldest, scale, softcap, window,
    TOKEN: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, BLOCK_SIZE: tl.constexpr, KEYS: tl.constexpr,
    STAGES: tl.constexpr, MASKED: tl.constexpr, LATE_SUM: tl.constexpr, SETTLE: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
):  # fmt: skip
    """Online softmax over keys `start` to `stop` of the item's entries, KEYS a round.

    acc [ROWS, D_PAD], high [ROWS] the maximum of the base-2 logits, total the sum of weights: [ROWS], or with LATE_SUM
    [ROWS, KEYS], to be summed after the last round. Returns the three.
    """
    keys = tl.arange(0, KEYS)
    dims = tl.arange(0, D_PAD)
    slope = LOG2E if HAS_SOFTCAP else scale * LOG2E
    # What a round reads by is fetched one round ahead, so that K and V are pipelined as if their addresses were plain.
    # Where rounds begin at block bounds, a key's offset in its block never changes.
    if KEYS % BLOCK_SIZE == 0:
        offset = keys % BLOCK_SIZE
        entry = first + start // BLOCK_SIZE + keys // BLOCK_SIZE
    else:
        entry = first + ((start + keys).to(tl.uint32) // BLOCK_SIZE).to(tl.int32)
    block = tl.load(entry_block + entry)
    if MASKED:
        base = tl.load(entry_base + entry)
        meta = tl.load(entry_meta + entry)
    for at in tl.range(start, stop, KEYS, num_stages=STAGES):
        if SETTLE:  # a use of acc: its last dot ends here, which frees the registers that the next one needs
            acc = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=f,f", [acc], dtype=tl.float32, is_pure=False, pack=1)
        index = at + keys
        if KEYS % BLOCK_SIZE != 0:
            offset = (index.to(tl.uint32) % BLOCK_SIZE).to(tl.int32)
        place = block.to(tl.int64)[:, None] * (BLOCK_SIZE * TOKEN) + (offset * TOKEN)[:, None]
        if KEYS % BLOCK_SIZE == 0:
            entry += KEYS // BLOCK_SIZE
        else:
            entry = first + ((index + KEYS).to(tl.uint32) // BLOCK_SIZE).to(tl.int32)
        block = tl.load(entry_block + entry)
        if MASKED:
            lower = meta & 255
            key_pos = base + offset
            held = (index < stop) & (offset < (meta >> 16))
            if HAS_WINDOW:
                held &= key_pos > oldest
            owners = tl.where(held, (meta >> 8) & 255, 0).to(tl.uint32)
            base = tl.load(entry_base + entry)
            meta = tl.load(entry_meta + entry)
            key_mask = held[:, None] & (dims < D)[None, :]
            k_tile = tl.load(k_head + place, mask=key_mask, other=0.0)
        elif D != D_PAD:
            k_tile = tl.load(k_head + place, mask=(dims < D)[None, :], other=0.0)
        else:
            k_tile = tl.load(k_head + place)
        s = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee")
        if HAS_SOFTCAP:
            s = _capped(s * scale, softcap)
        if MASKED:
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
        if MASKED:
            v_tile = tl.load(v_head + place, mask=key_mask, other=0.0)
        elif D != D_PAD:
            v_tile = tl.load(v_head + place, mask=(dims < D)[None, :], other=0.0)
        else:
            v_tile = tl.load(v_head + place)
        acc = tl.dot(p.to(v_tile.dtype), v_tile, acc, input_precision="ieee")
        high = top
    return acc, high, total


@triton.jit
def _rows(query_token, item_slot, query0, first_slot, groups, head, rows, GROUP: tl.constexpr,
          GROUP_PAD: tl.constexpr, GROUP_ROWS: tl.constexpr):  # fmt: skip
    """Of a tile's rows: which are real, their int64 query token, their query head. Read from memory at every call:
    values kept from before the rounds to after them would make the rounds spill."""
    token = tl.load(query_token + query0 + rows // GROUP_PAD, volatile=True)
    live = (token >= 0) & (rows % GROUP_PAD < GROUP) & (rows < groups * GROUP_ROWS)
    return live, tl.maximum(token, 0).to(tl.int64), head * GROUP + rows % GROUP_PAD


@triton.jit
def _tile(
    q, k_cache, v_cache, out, partial, partial_lse, sinks, record, item_slot, part_start,
    entry_block, entry_base, entry_meta, query_token, query_pos, head,
    q_stride_t, q_stride_h, out_stride_t, out_stride_h, scale, softcap, window,
    HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, GROUP_ROWS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr,
    IS_WIDE: tl.constexpr, SETTLE: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_SINKS: tl.constexpr,
):  # fmt: skip
    """Attend the item's ROWS query rows to its keys; store the result, or a partial one where others add to it."""
    first = tl.load(record + 1)
    stop = tl.load(record + 3)
    group0 = tl.load(record + 4)
    groups = tl.load(record + 5)
    first_slot = tl.load(record + 6)
    query0 = group0 * (GROUP_ROWS // GROUP_PAD)
    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, D_PAD)
    local = rows // GROUP_PAD
    live, token, q_head = _rows(
        query_token, item_slot, query0, first_slot, groups, head, rows, GROUP, GROUP_PAD, GROUP_ROWS
    )
    q_tile = tl.load(
        q + token[:, None] * q_stride_t + q_head[:, None] * q_stride_h + dims[None, :],
        mask=live[:, None] & (dims < D)[None, :], other=0.0,
    )  # fmt: skip
    position = tl.load(query_pos + query0 + local)
    oldest = 0
    if HAS_WINDOW:
        oldest = tl.min(tl.where(live, position, 2147483647), 0) - window
    k_head = k_cache + head * D + dims[None, :]
    v_head = v_cache + head * D + dims[None, :]
    acc = tl.zeros([ROWS, D_PAD], tl.float32)
    high = tl.full([ROWS], float("-inf"), tl.float32)
    if IS_WIDE:
        total = tl.zeros([ROWS], tl.float32)
        full = 0
        if not HAS_WINDOW:
            # Keys that all owners see in full come first and need no mask.
            full = tl.load(record + 2)
            acc, high, total = _rounds(
                q_tile, acc, high, total, k_head, v_head, entry_block, entry_base, entry_meta, first, 0, full,
                local, position, oldest, scale, softcap, window, HEADS * D, D, D_PAD, BLOCK_SIZE, KEYS, STAGES,
                False, False, SETTLE, False, HAS_SOFTCAP,
            )  # fmt: skip
            owner = (local >= tl.load(record + 7)) & (local < tl.load(record + 8))
            acc = tl.where(owner[:, None], acc, 0.0)
            total = tl.where(owner, total, 0.0)
            high = tl.where(owner, high, float("-inf"))
        acc, high, total = _rounds(
            q_tile, acc, high, total, k_head, v_head, entry_block, entry_base, entry_meta, first, full, stop,
            local, position, oldest, scale, softcap, window, HEADS * D, D, D_PAD, BLOCK_SIZE, KEYS // 2, STAGES + 1,
            True, False, SETTLE, HAS_WINDOW, HAS_SOFTCAP,
        )  # fmt: skip
    else:
        total = tl.zeros([ROWS, KEYS], tl.float32)
        acc, high, total = _rounds(
            q_tile, acc, high, total, k_head, v_head, entry_block, entry_base, entry_meta, first, 0, stop,
            local, position, oldest, scale, softcap, window, HEADS * D, D, D_PAD, BLOCK_SIZE, KEYS, STAGES,
            True, True, False, HAS_WINDOW, HAS_SOFTCAP,
        )  # fmt: skip
        total = tl.sum(total, 1)

    live, token, q_head = _rows(
        query_token, item_slot, query0, first_slot, groups, head, rows, GROUP, GROUP_PAD, GROUP_ROWS
    )
    group = rows // GROUP_ROWS
    slot = tl.load(item_slot + first_slot + group, mask=group < groups, other=0)
    parts = tl.load(part_start + group0 + group + 1, mask=group < groups, other=0) - tl.load(
        part_start + group0 + group, mask=group < groups, other=0
    )
    alone = live & (parts == 1)
    norm = tl.where(total == 0.0, 1.0, total)
    if HAS_SINKS:  # a sink joins the denominator once: here if there is no merge
        sink = tl.load(sinks + q_head, mask=live, other=0.0).to(tl.float32) * LOG2E
        peak = tl.maximum(high, sink)
        norm = tl.where(alone, total * tl.exp2(high - peak) + tl.exp2(sink - peak), norm)
        acc *= tl.where(alone, tl.exp2(high - peak), 1.0)[:, None]
    result = (acc / norm[:, None]).to(out.dtype.element_ty)
    tl.store(
        out + token[:, None] * out_stride_t + q_head[:, None] * out_stride_h + dims[None, :],
        result, mask=alone[:, None] & (dims < D)[None, :],
    )  # fmt: skip
    spread = live & (parts > 1)
    cell = (slot.to(tl.int64) * HEADS + head) * GROUP_ROWS + rows % GROUP_ROWS
    tl.store(partial_lse + cell, tl.where(total == 0.0, float("-inf"), high + tl.log2(norm)), mask=spread)
    tl.store(partial + cell[:, None] * D_PAD + dims[None, :], result, mask=spread[:, None])


@triton.jit
def _merge(
    out, partial, partial_lse, sinks, query_token, group, slot0, parts, head, out_stride_t, out_stride_h,
    HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
    GROUP_ROWS: tl.constexpr, HAS_SINKS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """out = sum_i 2^(lse_i - m) o_i / sum_i 2^(lse_i - m) over the parts i of one group of GROUP_ROWS rows."""
    rows = tl.arange(0, GROUP_ROWS)
    dims = tl.arange(0, D_PAD)
    lanes = tl.arange(0, 16)
    token = tl.load(query_token + group * (GROUP_ROWS // GROUP_PAD) + rows // GROUP_PAD)
    live = (token >= 0) & (rows % GROUP_PAD < GROUP)
    token = tl.maximum(token, 0).to(tl.int64)
    q_head = head * GROUP + rows % GROUP_PAD
    cell = (slot0.to(tl.int64) * HEADS + head) * GROUP_ROWS + rows
    step = HEADS * GROUP_ROWS
    high = tl.full([GROUP_ROWS], float("-inf"), tl.float32)
    for p in range(0, parts, 16):
        some = live[None, :] & (p + lanes < parts)[:, None]
        lse = tl.load(
            partial_lse + cell[None, :] + (p + lanes)[:, None] * step,
            mask=some, other=float("-inf"), cache_modifier=".cg",
        )  # fmt: skip
        high = tl.maximum(high, tl.max(lse, 0))
    total = tl.zeros([GROUP_ROWS], tl.float32)
    if HAS_SINKS:
        sink = tl.load(sinks + q_head, mask=live, other=0.0).to(tl.float32) * LOG2E
        high = tl.maximum(high, sink)
        total = tl.exp2(sink - high)
    high = tl.where(high == float("-inf"), 0.0, high)
    acc = tl.zeros([GROUP_ROWS, D_PAD], tl.float32)
    for p in range(0, parts, UNROLL):
        for i in tl.static_range(UNROLL):
            some = live & (rows * 0 + i < parts - p)
            at = cell + (p + i) * step
            lse = tl.load(partial_lse + at, mask=some, other=float("-inf"), cache_modifier=".cg")
            o = tl.load(
                partial + at[:, None] * D_PAD + dims[None, :], mask=some[:, None], other=0.0, cache_modifier=".cg"
            )
            weight = tl.exp2(lse - high)
            total += weight
            acc += weight[:, None] * o.to(tl.float32)
    result = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(
        out + token[:, None] * out_stride_t + q_head[:, None] * out_stride_h + dims[None, :],
        result.to(out.dtype.element_ty), mask=live[:, None] & (dims < D)[None, :],
    )  # fmt: skip


@triton.jit
def tree_attention_kernel(
    q, k_cache, v_cache, out, partial, partial_lse, arrivals, sinks,
    items, item_slot, part_start, entry_block, entry_base, entry_meta, query_token, query_pos,
    q_stride_t, q_stride_h, out_stride_t, out_stride_h, scale, softcap, window,
    HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, GROUP_ROWS: tl.constexpr, WIDE_ROWS: tl.constexpr, WIDE_KEYS: tl.constexpr,
    WIDE_STAGES: tl.constexpr, NARROW_KEYS: tl.constexpr, NARROW_STAGES: tl.constexpr, MERGE_UNROLL: tl.constexpr,
    THREADS: tl.constexpr, SETTLE: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_SINKS: tl.constexpr,
):  # fmt: skip
    """One item for one kv head. q, out [T, Hq, D] by strides; caches [blocks, BLOCK_SIZE, HEADS, D] contiguous;
    partial [slots, HEADS, GROUP_ROWS, D_PAD], partial_lse without the last dimension; arrivals int32, zero."""
    program = tl.program_id(0)
    head = program % HEADS
    record = items + program // HEADS * ITEM_FIELDS
    kind = tl.load(record)
    if kind == NARROW:
        _tile(
            q, k_cache, v_cache, out, partial, partial_lse, sinks, record, item_slot, part_start, entry_block,
            entry_base, entry_meta, query_token, query_pos, head, q_stride_t, q_stride_h, out_stride_t, out_stride_h,
            scale, softcap, window, HEADS, GROUP, GROUP_PAD, D, D_PAD, BLOCK_SIZE, GROUP_ROWS, GROUP_ROWS,
            NARROW_KEYS, NARROW_STAGES, False, False, HAS_WINDOW, HAS_SOFTCAP, HAS_SINKS,
        )  # fmt: skip
    if WIDE_ROWS > 0:  # noqa: SIM102
        if kind == WIDE:
            _tile(
                q, k_cache, v_cache, out, partial, partial_lse, sinks, record, item_slot, part_start, entry_block,
                entry_base, entry_meta, query_token, query_pos, head, q_stride_t, q_stride_h, out_stride_t,
                out_stride_h, scale, softcap, window, HEADS, GROUP, GROUP_PAD, D, D_PAD, BLOCK_SIZE, GROUP_ROWS,
                WIDE_ROWS, WIDE_KEYS, WIDE_STAGES, True, SETTLE, HAS_WINDOW, HAS_SOFTCAP, HAS_SINKS,
            )  # fmt: skip
    if kind > 0:
        # One lane a group, and as many lanes as threads, so that no lane's count is added twice.
        group0 = tl.load(record + 4)
        groups = tl.load(record + 5)
        lanes = tl.arange(0, THREADS)
        group = group0 + lanes
        parts = tl.load(part_start + group + 1, mask=lanes < groups, other=0)
        parts -= tl.load(part_start + group, mask=lanes < groups, other=0)
        counter = arrivals + group * HEADS + head
        tl.debug_barrier()  # this program's partial results are stored before it is counted
        before = tl.atomic_add(counter, 1, mask=parts > 1, sem="acq_rel", scope="gpu")
        last = ((parts > 1) & (before == parts - 1)).to(tl.int32)
        tl.store(counter, 0, mask=last > 0)
        if tl.sum(last, 0) > 0:
            for i in range(0, groups):
                if tl.sum(tl.where(lanes == i, last, 0), 0) > 0:
                    slot0 = tl.load(part_start + group0 + i)
                    count = tl.load(part_start + group0 + i + 1) - slot0
                    _merge(
                        out, partial, partial_lse, sinks, query_token, group0 + i, slot0, count, head, out_stride_t,
                        out_stride_h, HEADS, GROUP, GROUP_PAD, D, D_PAD, GROUP_ROWS, HAS_SINKS, MERGE_UNROLL,
                    )  # fmt: skip
