"""The jit kernels of tree attention: they attend, split and merge in one launch, or in two that run side by side.
`reference` defines the numbers.

A program takes one work item (see `schedule`) for one kv head. An item is a tile of query rows and a list of KV
entries, each with the queries that own it. Wide tiles take entries that many queries share, at tensor-core rate;
narrow tiles stream private ones at memory rate. Rows whose keys are spread over several items leave normalised partial
results with a base-2 log-sum-exp. Where all parts are narrow the last item to arrive merges them; where some are wide,
merge items at the end of the grid wait for the parts, so that no program has a whole tile to merge. Parts are merged in
the order of their slots, so results do not depend on who was last. Arrival counters return to zero.

One launch serves most trees. Where many queries share much and have much of their own besides, wide items get a launch
of their own with larger tiles, which read the shared part less often: a program a multiprocessor, and beside it the
other launch, which may start as soon as the first is under way (programmatic dependent launch).

Merge items wait for programs with lower numbers, which have all been started by then, and for the launch of wide items,
whose programs wait for no other of these.

Where the GPU can, a launch starts while whatever kernel comes before it ends, and reads its tables meanwhile.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .tile_kernel import (
    FIRST_SLOT,
    ITEM_FIELDS,
    LOG2E,
    PARTS,
    SLOT,
    attend_tile,
    await_previous,
    leave_result,
    row_tokens,
)

NARROW = tl.constexpr(1)
WIDE = tl.constexpr(2)
MERGE = tl.constexpr(3)


@triton.jit
def _parts_and_counters(arrivals, record, head, HEADS: tl.constexpr, THREADS: tl.constexpr):
    """Of each of the record's groups, for one lane: its number of parts, and where those that arrived are counted."""
    lanes = tl.arange(0, THREADS)  # as many as threads, so that no lane's count is added twice
    parts = tl.load(record + PARTS + lanes, mask=lanes < tl.load(record + 5), other=0)
    return parts, arrivals + (tl.load(record + 4) + lanes) * HEADS + head


@triton.jit
def _arrive(arrivals, record, head, HEADS: tl.constexpr, THREADS: tl.constexpr):
    """Count the item's part of each of its groups that has others."""
    parts, counter = _parts_and_counters(arrivals, record, head, HEADS, THREADS)
    tl.debug_barrier()  # the partial results of all threads are stored before they are counted
    tl.atomic_add(counter, 1, mask=parts > 1, sem="release", scope="gpu")


@triton.jit
def _wait(arrivals, record, head, HEADS: tl.constexpr, THREADS: tl.constexpr):
    """Until all parts of the record's groups have arrived; then the counters return to zero."""
    parts, counter = _parts_and_counters(arrivals, record, head, HEADS, THREADS)
    missing = 1
    while missing > 0:
        arrived = tl.atomic_add(counter, 0, mask=parts > 0, sem="acquire", scope="gpu")
        missing = tl.max(tl.where(parts > 0, parts - arrived, 0), 0)
    tl.debug_barrier()
    tl.store(counter, 0, mask=parts > 0)


@triton.jit
def _merge(
    out, partial, partial_lse, sinks, live, token, q_head, parts, slot, row, head, out_stride_t, out_stride_h,
    HEADS: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, GROUP_ROWS: tl.constexpr, ROWS: tl.constexpr,
    BATCH: tl.constexpr, HAS_SINKS: tl.constexpr,
):  # fmt: skip
    """out = sum_i 2^lse_i o_i / sum_i 2^lse_i over the parts i of each row, BATCH parts at once. Of the rows [ROWS]:
    what `row_tokens` gives, how many parts there are, the first one's slot, the row's number in its group."""
    dims = tl.arange(0, D_PAD)
    parts = tl.where(live, parts, 0)
    live = parts > 0
    cell = (slot.to(tl.int64) * HEADS + head) * GROUP_ROWS + row
    high = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    if HAS_SINKS:
        high = tl.load(sinks + q_head, mask=live, other=float("-inf")).to(tl.float32) * LOG2E
        total = tl.where(high == float("-inf"), 0.0, 1.0)
    acc = tl.zeros([ROWS, D_PAD], tl.float32)
    o_row = partial + cell * D_PAD
    lse_row = partial_lse + cell
    hop = HEADS * GROUP_ROWS
    for first in range(0, tl.max(parts, 0), BATCH):
        # A tensor a part, not one of all: each thread then has what it sums, and none waits for another.
        o, lse = (), ()
        top = high
        for i in tl.static_range(BATCH):
            there = parts > first + i
            part = o_row[:, None] + (i * hop * D_PAD + dims)[None, :]
            o += (tl.load(part, mask=there[:, None], other=0.0, cache_modifier=".cg"),)  # type: ignore[assignment]
            lse_i = tl.load(lse_row + i * hop, mask=there, other=float("-inf"), cache_modifier=".cg")
            lse += (lse_i,)  # type: ignore[assignment]
        for i in tl.static_range(BATCH):
            top = tl.maximum(top, lse[i])
        o_row += BATCH * hop * D_PAD
        lse_row += BATCH * hop
        pivot = tl.where(top == float("-inf"), 0.0, top)
        decay = tl.exp2(high - pivot)
        total *= decay
        acc *= decay[:, None]
        for i in tl.static_range(BATCH):
            weight = tl.exp2(lse[i] - pivot)
            total += weight
            acc += o[i].to(tl.float32) * weight[:, None]
        high = top
    result = acc * (1.0 / tl.where(total == 0.0, 1.0, total))[:, None]
    tl.store(
        out + token[:, None] * out_stride_t + q_head[:, None] * out_stride_h + dims[None, :],
        result.to(out.dtype.element_ty), mask=live[:, None] & (dims < D)[None, :],
    )  # fmt: skip


@triton.jit
def _wide(
    q, k_cache, v_cache, out, partial, partial_lse, arrivals, sinks, record, entry_block, entry_mark,
    query_token, query_pos, head, q_stride_t, q_stride_h, out_stride_t, out_stride_h, scale, softcap, window,
    HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
    ENTRY: tl.constexpr, GROUP_ROWS: tl.constexpr, WIDE_ROWS: tl.constexpr, WIDE_KEYS: tl.constexpr,
    WIDE_STAGES: tl.constexpr, EDGE_KEYS: tl.constexpr, EDGE_STAGES: tl.constexpr, THREADS: tl.constexpr,
    EARLY: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_SINKS: tl.constexpr,
):  # fmt: skip
    """A wide item for one kv head."""
    acc, high, total = attend_tile(
        q, k_cache, v_cache, record, entry_block, entry_mark, query_token, query_pos, head,
        q_stride_t, q_stride_h, scale, softcap, window, HEADS, GROUP, GROUP_PAD, D, D_PAD, ENTRY, GROUP_ROWS,
        WIDE_ROWS, WIDE_KEYS, WIDE_STAGES, EDGE_KEYS, EDGE_STAGES, True, EARLY, HAS_WINDOW, HAS_SOFTCAP,
    )  # fmt: skip
    group = tl.arange(0, WIDE_ROWS) // GROUP_ROWS
    leave_result(
        acc, high, total, out, partial, partial_lse, sinks, record, tl.load(record + PARTS + group),
        tl.load(record + SLOT + group), query_token, head, out_stride_t, out_stride_h, HEADS, GROUP, GROUP_PAD, D,
        D_PAD, GROUP_ROWS, WIDE_ROWS, HAS_SINKS,
    )  # fmt: skip
    _arrive(arrivals, record, head, HEADS, THREADS)


@triton.jit
def wide_attention_kernel(
    q, k_cache, v_cache, out, partial, partial_lse, arrivals, sinks,
    items, count, entry_block, entry_mark, query_token, query_pos,
    q_stride_t, q_stride_h, out_stride_t, out_stride_h, scale, softcap, window,
    HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
    ENTRY: tl.constexpr, GROUP_ROWS: tl.constexpr, WIDE_ROWS: tl.constexpr, WIDE_KEYS: tl.constexpr,
    WIDE_STAGES: tl.constexpr, EDGE_KEYS: tl.constexpr, EDGE_STAGES: tl.constexpr, THREADS: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_SINKS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """The first `count[0]` items, all wide, shared out among the programs. EARLY: it starts while the kernel before it
    ends, and `tree_attention_kernel`, launched behind it, starts beside it."""
    program = tl.program_id(0)
    kind = tl.load(items + program // HEADS * ITEM_FIELDS)  # beside the count: the item is near when its turn comes
    stop = tl.where(kind == WIDE, tl.load(count) * HEADS, 0)
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    for work in range(program, stop, tl.num_programs(0)):
        _wide(
            q, k_cache, v_cache, out, partial, partial_lse, arrivals, sinks, items + work // HEADS * ITEM_FIELDS,
            entry_block, entry_mark, query_token, query_pos, work % HEADS, q_stride_t, q_stride_h, out_stride_t,
            out_stride_h, scale, softcap, window, HEADS, GROUP, GROUP_PAD, D, D_PAD, ENTRY, GROUP_ROWS, WIDE_ROWS,
            WIDE_KEYS, WIDE_STAGES, EDGE_KEYS, EDGE_STAGES, THREADS, 0, HAS_WINDOW, HAS_SOFTCAP, HAS_SINKS,
        )  # fmt: skip


@triton.jit
def tree_attention_kernel(
    q, k_cache, v_cache, out, partial, partial_lse, arrivals, sinks,
    items, entry_block, entry_mark, query_token, query_pos,
    q_stride_t, q_stride_h, out_stride_t, out_stride_h, scale, softcap, window,
    HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
    ENTRY: tl.constexpr, GROUP_ROWS: tl.constexpr, WIDE_ROWS: tl.constexpr, WIDE_KEYS: tl.constexpr,
    WIDE_STAGES: tl.constexpr, EDGE_KEYS: tl.constexpr, EDGE_STAGES: tl.constexpr, NARROW_KEYS: tl.constexpr,
    NARROW_STAGES: tl.constexpr, MERGE_ROWS: tl.constexpr, MERGE_PARTS: tl.constexpr, THREADS: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_SINKS: tl.constexpr, MERGES: tl.constexpr,
    EARLY: tl.constexpr, BEHIND: tl.constexpr,
):  # fmt: skip
    """One item for one kv head. q, out [T, Hq, D] by strides; caches [entries, ENTRY, HEADS, D] contiguous;
    partial [slots, HEADS, GROUP_ROWS, D_PAD], partial_lse without the last dimension; arrivals [groups, HEADS] int32,
    zero before and after. EARLY: see `await_previous`. BEHIND: launched behind `wide_attention_kernel`."""
    program = tl.program_id(0)
    head = program % HEADS
    record = items + program // HEADS * ITEM_FIELDS
    kind = tl.load(record)
    if BEHIND:
        gdc_launch_dependents()
    if kind == NARROW:
        # What is needed at the end is fetched with the rest of the record.
        group0 = tl.load(record + 4)
        deferred = tl.load(record + 6)
        slot = tl.load(record + SLOT)
        first_slot = tl.load(record + FIRST_SLOT)
        parts = tl.load(record + PARTS)
        acc, high, total = attend_tile(
            q, k_cache, v_cache, record, entry_block, entry_mark, query_token, query_pos, head,
            q_stride_t, q_stride_h, scale, softcap, window, HEADS, GROUP, GROUP_PAD, D, D_PAD, ENTRY, GROUP_ROWS,
            GROUP_ROWS, NARROW_KEYS, NARROW_STAGES, 0, 0, False, EARLY, HAS_WINDOW, HAS_SOFTCAP,
        )  # fmt: skip
        leave_result(
            acc, high, total, out, partial, partial_lse, sinks, record, parts, slot, query_token, head, out_stride_t,
            out_stride_h, HEADS, GROUP, GROUP_PAD, D, D_PAD, GROUP_ROWS, GROUP_ROWS, HAS_SINKS,
        )  # fmt: skip
        if parts > 1:
            if deferred > 0:
                _arrive(arrivals, record, head, HEADS, THREADS)
            else:
                rows = tl.arange(0, GROUP_ROWS)
                live, token, q_head = row_tokens(query_token, record, head, rows, GROUP, GROUP_PAD, GROUP_ROWS, "")
                counter = arrivals + group0 * HEADS + head
                tl.debug_barrier()  # the partial results of all threads are stored before they are counted
                before = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
                if before == parts - 1:
                    tl.store(counter, 0)
                    _merge(
                        out, partial, partial_lse, sinks, live, token, q_head, parts, first_slot, rows, head,
                        out_stride_t, out_stride_h, HEADS, D, D_PAD, GROUP_ROWS, GROUP_ROWS, MERGE_PARTS, HAS_SINKS,
                    )  # fmt: skip
    if WIDE_ROWS > 0:  # noqa: SIM102
        if kind == WIDE:
            _wide(
                q, k_cache, v_cache, out, partial, partial_lse, arrivals, sinks, record, entry_block, entry_mark,
                query_token, query_pos, head, q_stride_t, q_stride_h, out_stride_t, out_stride_h, scale, softcap,
                window, HEADS, GROUP, GROUP_PAD, D, D_PAD, ENTRY, GROUP_ROWS, WIDE_ROWS, WIDE_KEYS, WIDE_STAGES,
                EDGE_KEYS, EDGE_STAGES, THREADS, EARLY, HAS_WINDOW, HAS_SOFTCAP, HAS_SINKS,
            )  # fmt: skip
    if MERGES:  # noqa: SIM102
        if kind == MERGE:
            rows = tl.arange(0, MERGE_ROWS)
            live, token, q_head = row_tokens(query_token, record, head, rows, GROUP, GROUP_PAD, GROUP_ROWS, "")
            parts = tl.load(record + PARTS + rows // GROUP_ROWS)
            slot = tl.load(record + FIRST_SLOT + rows // GROUP_ROWS)
            await_previous(EARLY)
            _wait(arrivals, record, head, HEADS, THREADS)
            _merge(
                out, partial, partial_lse, sinks, live, token, q_head, parts, slot, rows % GROUP_ROWS, head,
                out_stride_t, out_stride_h, HEADS, D, D_PAD, GROUP_ROWS, MERGE_ROWS, MERGE_PARTS, HAS_SINKS,
            )  # fmt: skip
    if BEHIND:  # noqa: SIM102
        if program == tl.num_programs(0) - 1:
            gdc_wait()  # what follows this launch must find the one before it finished too
