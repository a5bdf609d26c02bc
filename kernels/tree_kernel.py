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

Merge items wait for programs with lower numbers, which have all been started by then, and for the launch before, whose
programs wait for nobody.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .tile_kernel import FIRST_SLOT, ITEM_FIELDS, LOG2E, PARTS, attend_tile, leave_result, row_tokens

NARROW = tl.constexpr(1)
WIDE = tl.constexpr(2)
MERGE = tl.constexpr(3)


@triton.jit
def _wait(counter, parts):
    """Until all `parts` of each group have arrived; then the counters return to zero."""
    missing = 1
    while missing > 0:
        arrived = tl.atomic_add(counter, 0, mask=parts > 0, sem="acquire", scope="gpu")
        missing = tl.max(tl.where(parts > 0, parts - arrived, 0), 0)
    tl.debug_barrier()
    tl.store(counter, 0, mask=parts > 0)


@triton.jit
def _merge(
    out, partial, partial_lse, arrivals, sinks, record, query_token, head, out_stride_t, out_stride_h,
    HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
    GROUP_ROWS: tl.constexpr, ROWS: tl.constexpr, BATCH: tl.constexpr, THREADS: tl.constexpr, WAITS: tl.constexpr,
    HAS_SINKS: tl.constexpr,
):  # fmt: skip
    """out = sum_i 2^lse_i o_i / sum_i 2^lse_i over the parts i of the record's groups that have any, BATCH parts at
    once. WAITS: for the parts, when all that does not depend on them is ready."""
    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, D_PAD)
    live, token, q_head = row_tokens(query_token, record, head, rows, GROUP, GROUP_PAD, GROUP_ROWS, "")
    parts = tl.where(live, tl.load(record + PARTS + rows // GROUP_ROWS), 0)
    live &= parts > 0
    slot = tl.load(record + FIRST_SLOT + rows // GROUP_ROWS).to(tl.int64)
    cell = (slot * HEADS + head) * GROUP_ROWS + rows % GROUP_ROWS
    most = tl.max(parts, 0)
    high = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    if HAS_SINKS:
        high = tl.load(sinks + q_head, mask=live, other=float("-inf")).to(tl.float32) * LOG2E
        total = tl.where(high == float("-inf"), 0.0, 1.0)
    acc = tl.zeros([ROWS, D_PAD], tl.float32)
    if WAITS:
        lanes = tl.arange(0, THREADS)
        wanted = tl.load(record + PARTS + lanes, mask=lanes < tl.load(record + 5), other=0)
        _wait(arrivals + (tl.load(record + 4) + lanes) * HEADS + head, wanted)
    for first in range(0, most, BATCH):
        top = high
        for i in tl.static_range(BATCH):
            lse = tl.load(partial_lse + cell + i * HEADS * GROUP_ROWS, mask=parts > first + i, other=float("-inf"),
                          cache_modifier=".cg")  # fmt: skip
            top = tl.maximum(top, lse)
        pivot = tl.where(top == float("-inf"), 0.0, top)
        decay = tl.exp2(high - pivot)
        total *= decay
        acc *= decay[:, None]
        for i in tl.static_range(BATCH):  # all loads of a batch are under way before the first is needed
            at = cell + i * HEADS * GROUP_ROWS
            lse = tl.load(partial_lse + at, mask=parts > first + i, other=float("-inf"), cache_modifier=".cg")
            o = tl.load(partial + at[:, None] * D_PAD + dims[None, :], mask=(parts > first + i)[:, None], other=0.0,
                        cache_modifier=".cg")  # fmt: skip
            weight = tl.exp2(lse - pivot)
            total += weight
            acc += o.to(tl.float32) * weight[:, None]
        high = top
        cell += BATCH * HEADS * GROUP_ROWS
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
    HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_SINKS: tl.constexpr,
):  # fmt: skip
    """A wide item for one kv head."""
    acc, high, total = attend_tile(
        q, k_cache, v_cache, record, entry_block, entry_mark, query_token, query_pos, head,
        q_stride_t, q_stride_h, scale, softcap, window, HEADS, GROUP, GROUP_PAD, D, D_PAD, ENTRY, GROUP_ROWS,
        WIDE_ROWS, WIDE_KEYS, WIDE_STAGES, EDGE_KEYS, EDGE_STAGES, True, HAS_WINDOW, HAS_SOFTCAP,
    )  # fmt: skip
    leave_result(
        acc, high, total, out, partial, partial_lse, sinks, record, query_token, head, out_stride_t, out_stride_h,
        HEADS, GROUP, GROUP_PAD, D, D_PAD, GROUP_ROWS, WIDE_ROWS, HAS_SINKS,
    )  # fmt: skip
    # One lane a group, and as many lanes as threads, so that no lane's count is added twice.
    lanes = tl.arange(0, THREADS)
    parts = tl.load(record + PARTS + lanes, mask=lanes < tl.load(record + 5), other=0)
    counter = arrivals + (tl.load(record + 4) + lanes) * HEADS + head
    tl.debug_barrier()  # the partial results of all threads are stored before they are counted
    tl.atomic_add(counter, 1, mask=parts > 1, sem="release", scope="gpu")


@triton.jit
def wide_attention_kernel(
    q, k_cache, v_cache, out, partial, partial_lse, arrivals, sinks,
    items, count, entry_block, entry_mark, query_token, query_pos,
    q_stride_t, q_stride_h, out_stride_t, out_stride_h, scale, softcap, window,
    HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
    ENTRY: tl.constexpr, GROUP_ROWS: tl.constexpr, WIDE_ROWS: tl.constexpr, WIDE_KEYS: tl.constexpr,
    WIDE_STAGES: tl.constexpr, EDGE_KEYS: tl.constexpr, EDGE_STAGES: tl.constexpr, THREADS: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_SINKS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """The first `count[0]` items, all wide, shared out among the programs. AHEAD: `tree_attention_kernel` is launched
    behind it and starts at once, beside it."""
    if AHEAD:
        gdc_launch_dependents()
    program = tl.program_id(0)
    kind = tl.load(items + program // HEADS * ITEM_FIELDS)  # beside the count: the item is near when its turn comes
    stop = tl.where(kind == WIDE, tl.load(count) * HEADS, 0)
    for work in range(program, stop, tl.num_programs(0)):
        _wide(
            q, k_cache, v_cache, out, partial, partial_lse, arrivals, sinks, items + work // HEADS * ITEM_FIELDS,
            entry_block, entry_mark, query_token, query_pos, work % HEADS, q_stride_t, q_stride_h, out_stride_t,
            out_stride_h, scale, softcap, window, HEADS, GROUP, GROUP_PAD, D, D_PAD, ENTRY, GROUP_ROWS, WIDE_ROWS,
            WIDE_KEYS, WIDE_STAGES, EDGE_KEYS, EDGE_STAGES, THREADS, HAS_WINDOW, HAS_SOFTCAP, HAS_SINKS,
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
    BEHIND: tl.constexpr,
):  # fmt: skip
    """One item for one kv head. q, out [T, Hq, D] by strides; caches [entries, ENTRY, HEADS, D] contiguous;
    partial [slots, HEADS, GROUP_ROWS, D_PAD], partial_lse without the last dimension; arrivals [groups, HEADS] int32,
    zero before and after."""
    program = tl.program_id(0)
    head = program % HEADS
    record = items + program // HEADS * ITEM_FIELDS
    kind = tl.load(record)
    if kind == NARROW:
        acc, high, total = attend_tile(
            q, k_cache, v_cache, record, entry_block, entry_mark, query_token, query_pos, head,
            q_stride_t, q_stride_h, scale, softcap, window, HEADS, GROUP, GROUP_PAD, D, D_PAD, ENTRY, GROUP_ROWS,
            GROUP_ROWS, NARROW_KEYS, NARROW_STAGES, 0, 0, False, HAS_WINDOW, HAS_SOFTCAP,
        )  # fmt: skip
        leave_result(
            acc, high, total, out, partial, partial_lse, sinks, record, query_token, head, out_stride_t, out_stride_h,
            HEADS, GROUP, GROUP_PAD, D, D_PAD, GROUP_ROWS, GROUP_ROWS, HAS_SINKS,
        )  # fmt: skip
        parts = tl.load(record + PARTS)
        if parts > 1:
            counter = arrivals + tl.load(record + 4) * HEADS + head
            tl.debug_barrier()  # the partial results of all threads are stored before they are counted
            if tl.load(record + 6) > 0:
                tl.atomic_add(counter, 1, sem="release", scope="gpu")
            else:
                before = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
                if before == parts - 1:
                    tl.store(counter, 0)
                    _merge(
                        out, partial, partial_lse, arrivals, sinks, record, query_token, head, out_stride_t,
                        out_stride_h, HEADS, GROUP, GROUP_PAD, D, D_PAD, GROUP_ROWS, GROUP_ROWS, MERGE_PARTS, THREADS,
                        False, HAS_SINKS,
                    )  # fmt: skip
    if WIDE_ROWS > 0:  # noqa: SIM102
        if kind == WIDE:
            _wide(
                q, k_cache, v_cache, out, partial, partial_lse, arrivals, sinks, record, entry_block, entry_mark,
                query_token, query_pos, head, q_stride_t, q_stride_h, out_stride_t, out_stride_h, scale, softcap,
                window, HEADS, GROUP, GROUP_PAD, D, D_PAD, ENTRY, GROUP_ROWS, WIDE_ROWS, WIDE_KEYS, WIDE_STAGES,
                EDGE_KEYS, EDGE_STAGES, THREADS, HAS_WINDOW, HAS_SOFTCAP, HAS_SINKS,
            )  # fmt: skip
    if MERGES:  # noqa: SIM102
        if kind == MERGE:
            _merge(
                out, partial, partial_lse, arrivals, sinks, record, query_token, head, out_stride_t, out_stride_h,
                HEADS, GROUP, GROUP_PAD, D, D_PAD, GROUP_ROWS, MERGE_ROWS, MERGE_PARTS, THREADS, True, HAS_SINKS,
            )  # fmt: skip
    if BEHIND:  # noqa: SIM102
        if program == tl.num_programs(0) - 1:
            gdc_wait()  # what follows this launch must find the one before it finished too
