"""Tree attention for trees whose branches share much and have some of their own, in one launch of programs whose warps
have different tasks: Gluon for Hopper. `reference` defines the numbers, `specialized` the items.

A program takes a part of a tile for one kv head: 128 rows of queries and heads (`tile_kernel` says which), keys that
all of them see, and keys that few do. Two groups of four warps attend half of the rows each to the keys that all see; a
third group takes the others, which it masks, for one half of the rows after the other. Two warps copy K and V ahead of
them. All products are wgmma: an idle row costs less than a kernel of other tiles beside this one, which would take
registers from it.

Of the parts of a tile one merges each half, when the others' partial results are there. Which one stands in the item:
results do not depend on who was last.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

LOG2E = gl.constexpr(1.4426950408889634)
FIELDS = gl.constexpr(96)
"""Of an item, all 0 where there is nothing to do: the first entry of the first ring, its shared rounds, and how many
masked rounds of each half follow them; the first entry of the other ring, its rounds of the lower half, of the upper;
the tile; part, parts; slot of part 0; the part that merges the lower half, the upper. Then, so that whoever needs them
need not look for them: the blocks of the first two rounds of either ring, and the tile's queries, plus 1."""
FIRST = gl.constexpr(0)
SHARED = gl.constexpr(1)
OWN = gl.constexpr(2)
FIRST_MASKED = gl.constexpr(3)
MASKED = gl.constexpr(4)
TILE = gl.constexpr(6)
PART = gl.constexpr(7)
PARTS = gl.constexpr(8)
SLOT0 = gl.constexpr(9)
MERGES = gl.constexpr(10)
BLOCKS = gl.constexpr(16)
MASKED_BLOCKS = gl.constexpr(24)
QUERIES = gl.constexpr(32)
HALF_ROWS = gl.constexpr(64)
WHOLE = gl.constexpr(1 << 29)
PLAIN = gl.constexpr(1 << 30)
"""In the mark of a round's first entry: see `specialized`."""
FOR_ALL = gl.constexpr(1 << 30 | 1 << 29 | 255 << 8)
"""The mark of a round that all rows see."""
NOTHING = gl.constexpr(-1e30)
"""A log-sum-exp of no key: finite, so that a difference of two is a number."""


@gluon.jit
def _several(table, at, N: gl.constexpr):
    """N numbers of a table, for all threads."""
    numbers = ()
    for i in gl.static_range(N):
        numbers += (gl.load(table + at + i),)  # type: ignore[assignment]
    return numbers


@gluon.jit
def _copy(cache, blocks, column, parts, stage, full, N: gl.constexpr, ENTRY: gl.constexpr):
    """A round's entries of one head. parts: the ring as [stages * 2 * N, ENTRY, 64], of a stage first the left halves
    of all entries, so that a stage is the swizzled [KEYS, 128]."""
    for i in gl.static_range(N):
        row = blocks[i] * ENTRY
        tma.async_copy_global_to_shared(cache, [row, column], full, parts.index(stage * 2 * N + i))
        tma.async_copy_global_to_shared(cache, [row, column + 64], full, parts.index(stage * 2 * N + N + i))


@gluon.jit
def _fetch(
    k_cache, v_cache, items, entry_block, k_ring, v_ring, k_full, k_free, v_full, v_free, q_asked,
    IS_SHARED: gl.constexpr, HEADS: gl.constexpr, D: gl.constexpr, ENTRY: gl.constexpr, KEYS: gl.constexpr,
    STAGES: gl.constexpr, EARLY: gl.constexpr,
):  # fmt: skip
    """K and V of all rounds of a ring, as stages come free."""
    N: gl.constexpr = KEYS // ENTRY
    LAYOUT: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    k_parts = k_ring._reinterpret(k_ring.dtype, [STAGES * 2 * N, ENTRY, 64], LAYOUT)
    v_parts = v_ring._reinterpret(v_ring.dtype, [STAGES * 2 * N, ENTRY, 64], LAYOUT)
    record = items + gl.program_id(0) // HEADS * FIELDS
    column = gl.program_id(0) % HEADS * D
    if IS_SHARED:
        first = gl.load(record + FIRST)
        rounds = gl.load(record + SHARED) + 2 * gl.load(record + OWN)
        blocks = _several(record, BLOCKS, N)
        later = _several(record, BLOCKS + N, N)
    else:
        first = gl.load(record + FIRST_MASKED)
        rounds = gl.load(record + MASKED) + gl.load(record + MASKED + 1)
        blocks = _several(record, MASKED_BLOCKS, N)
        later = _several(record, MASKED_BLOCKS + N, N)
    if EARLY:
        gdc_wait()
    # Queries are needed first, and would wait behind all that the rings have room for.
    mbarrier.wait(q_asked.index(0), 0)
    mbarrier.wait(q_asked.index(1), 0)
    for t in range(rounds):
        last = _several(entry_block, first + (t + 2) * N, N)
        stage = t % STAGES
        phase = ((t // STAGES) & 1) ^ 1
        mbarrier.wait(k_free.index(stage), phase)
        mbarrier.expect(k_full.index(stage), KEYS * D * 2)
        _copy(k_cache, blocks, column, k_parts, stage, k_full.index(stage), N, ENTRY)
        mbarrier.wait(v_free.index(stage), phase)
        mbarrier.expect(v_full.index(stage), KEYS * D * 2)
        _copy(v_cache, blocks, column, v_parts, stage, v_full.index(stage), N, ENTRY)
        blocks = later
        later = last


@gluon.jit
def _capped(s, scale, softcap):
    """softcap * tanh(s * scale / softcap), in base 2."""
    x = s * (scale / softcap)
    e = gl.exp2(gl.abs(x) * (-2.0 * LOG2E))
    far = (1.0 - e) / (1.0 + e)
    far = gl.where(x < 0, -far, far)
    y = x * x  # near zero the quotient cancels: an odd series instead
    near = x * (1.0 + y * (-1.0 / 3 + y * (2.0 / 15 + y * (-17.0 / 315 + y * (62.0 / 2835)))))
    return gl.where(gl.abs(x) < 0.2, near, far) * (softcap * LOG2E)


@gluon.jit
def _tokens(mark):
    return ((mark >> 16) & 0x1FFF).to(gl.int32)


@gluon.jit
def _seen(marks, local, N: gl.constexpr):
    """Of each row, how many keys of each entry it sees: a byte an entry."""
    seen = gl.zeros_like(local)
    for i in gl.static_range(N):
        seen |= gl.where(_owns(marks[i], local), _tokens(marks[i]), 0) << (8 * i)
    return seen


@gluon.jit
def _owns(mark, local):
    return (local - (mark & 255).to(gl.int32)).to(gl.uint32) < ((mark >> 8) & 255).to(gl.uint32)


@gluon.jit
def _masked_scores(s, mark, entry_mark, at, local, KEYS: gl.constexpr, ENTRY: gl.constexpr):
    """s where a row sees the key, and which rows see any. mark: of the first of the round's entries."""
    sees = _owns(mark, local)
    if (mark & PLAIN) == 0:
        seen = _seen(_several(entry_mark, at, KEYS // ENTRY), local, KEYS // ENTRY)
        keys = gl.arange(0, KEYS, layout=gl.SliceLayout(0, s.type.layout))
        upto = (seen[:, None] >> (keys // ENTRY * 8)[None, :]) & 255
        s = gl.where((keys % ENTRY)[None, :] < upto, s, float("-inf"))
        sees = seen > 0
    return s, sees


@gluon.jit
def _clear(v_tile, entry_mark, at, ENTRY: gl.constexpr):
    """What no key holds may be anything, and 0 times it must be 0."""
    BLOCKED: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [gl.num_warps(), 1], [1, 0])
    key = gl.arange(0, v_tile.shape[0], layout=gl.SliceLayout(1, BLOCKED))
    held = key % ENTRY < _tokens(gl.load(entry_mark + at + key // ENTRY))
    v_tile.store(gl.where(held[:, None], v_tile.load(BLOCKED), 0.0))
    fence_async_shared()
    gl.thread_barrier()


@gluon.jit
def _weigh(
    s, high, total, mark, entry_mark, at, local, scale, softcap,
    MASKED: gl.constexpr, KEYS: gl.constexpr, ENTRY: gl.constexpr, HAS_SOFTCAP: gl.constexpr,
):  # fmt: skip
    """Online softmax in base 2: weights of a round's keys, what earlier ones decay by, and the new maximum and sum.
    A row that sees none of the keys has weights of 0 for them. s: products of Q and K."""
    slope = 1.0 if HAS_SOFTCAP else scale * LOG2E
    if HAS_SOFTCAP:
        s = _capped(s, scale, softcap)
    sees = local >= 0
    if MASKED:
        s, sees = _masked_scores(s, mark, entry_mark, at, local, KEYS, ENTRY)
    top = gl.maximum(high, gl.max(s, 1) * slope)
    pivot = top
    if MASKED:
        top = gl.where(sees, top, high)
        pivot = gl.where(sees, top, float("inf"))
    p = gl.exp2(s * slope - pivot[:, None])
    decay = gl.exp2(high - top)
    return p, decay, top, total * decay + gl.sum(p, 1)


@gluon.jit
def _round(
    q_tile, k_ring, v_ring, k_full, k_free, v_full, v_free, acc, high, total, weights, v_stage, v_phase, stage, phase,
    mark, entry_mark, at, local, scale, softcap,
    MASKED: gl.constexpr, KEYS: gl.constexpr, ENTRY: gl.constexpr, HAS_SOFTCAP: gl.constexpr,
):  # fmt: skip
    """Q and K of a round beside the weights and V of the one before. Returns the new acc, maximum, sum and weights."""
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, KEYS, 16])
    zero = gl.zeros([HALF_ROWS, KEYS], gl.float32, SCORES)
    mbarrier.wait(v_full.index(v_stage), v_phase)
    mbarrier.wait(k_full.index(stage), phase)
    k_tile = k_ring.index(stage).permute((1, 0))
    s_next = warpgroup_mma(q_tile, k_tile, zero, use_acc=False, is_async=True)
    acc_next = warpgroup_mma(weights, v_ring.index(v_stage), acc, is_async=True)
    s = warpgroup_mma_wait(1, deps=[s_next])
    mbarrier.arrive(k_free.index(stage), count=1)
    p, decay, high, total = _weigh(
        s, high, total, mark, entry_mark, at, local, scale, softcap, MASKED, KEYS, ENTRY, HAS_SOFTCAP
    )
    acc = warpgroup_mma_wait(0, deps=[acc_next])
    mbarrier.arrive(v_free.index(v_stage), count=1)
    acc = acc * gl.convert_layout(decay, gl.SliceLayout(1, acc.type.layout))[:, None]
    return acc, high, total, gl.convert_layout(p.to(k_ring.dtype), weights.type.layout)


@gluon.jit
def _turn(t, shared, IS_SHARED: gl.constexpr, HALF: gl.constexpr):
    """Which round of its ring a group of warps takes as its t-th: after the shared ones every other."""
    if IS_SHARED:
        t = gl.where(t < shared, t, 2 * t - shared + HALF)
    return t


@gluon.jit
def _attend(
    q_tile, q_full, k_ring, v_ring, k_full, k_free, v_full, v_free, entry_mark, first, before, shared,
    rounds, half, scale, softcap,
    IS_SHARED: gl.constexpr, MASKED: gl.constexpr, HALF: gl.constexpr, GROUP_PAD: gl.constexpr, D: gl.constexpr,
    KEYS: gl.constexpr, ENTRY: gl.constexpr, STAGES: gl.constexpr, HAS_SOFTCAP: gl.constexpr,
):  # fmt: skip
    """Rows of a half to the keys of `rounds` rounds, of which the first `shared` are seen by all. first: the entry of
    the ring's round number `before`. Returns the normalised result [64, D] and its log-sum-exp [64]."""
    N: gl.constexpr = KEYS // ENTRY
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, KEYS, 16])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, D, 16])
    local = gl.arange(0, HALF_ROWS, layout=gl.SliceLayout(1, SCORES)) // GROUP_PAD + half * (HALF_ROWS // GROUP_PAD)
    acc = gl.zeros([HALF_ROWS, D], gl.float32, OUT)
    high = gl.full([HALF_ROWS], NOTHING, gl.float32, gl.SliceLayout(1, SCORES))
    total = gl.zeros([HALF_ROWS], gl.float32, gl.SliceLayout(1, SCORES))
    if rounds > 0:
        turn = 0
        at = first
        mark = FOR_ALL
        if MASKED:
            turn = _turn(0, shared, IS_SHARED, HALF)
            at = first + turn * N
            mark = gl.where(shared > 0, FOR_ALL, gl.load(entry_mark + at))
            next_mark = gl.load(entry_mark + first + _turn(gl.maximum(shared, 1), shared, IS_SHARED, HALF) * N)
            if IS_SHARED and HALF == 1:  # noqa: SIM102
                if shared == 0:
                    _pass(k_full, k_free, v_full, v_free, 0, STAGES)
        stage = (before + turn) % STAGES
        phase = ((before + turn) // STAGES) & 1
        mbarrier.wait(q_full, 0)
        mbarrier.wait(k_full.index(stage), phase)
        zero = gl.zeros([HALF_ROWS, KEYS], gl.float32, SCORES)
        s_next = warpgroup_mma(q_tile, k_ring.index(stage).permute((1, 0)), zero, use_acc=False, is_async=True)
        s = warpgroup_mma_wait(0, deps=[s_next])
        mbarrier.arrive(k_free.index(stage), count=1)
        p, _, high, total = _weigh(
            s, high, total, mark, entry_mark, at, local, scale, softcap, MASKED, KEYS, ENTRY, HAS_SOFTCAP
        )
        weights = gl.convert_layout(p.to(k_ring.dtype), gl.DotOperandLayout(0, OUT, 2))
        if IS_SHARED:
            for t in range(1, shared):
                v_stage = stage
                v_phase = phase
                stage = t % STAGES
                phase = (t // STAGES) & 1
                acc, high, total, weights = _round(
                    q_tile, k_ring, v_ring, k_full, k_free, v_full, v_free, acc, high, total, weights, v_stage,
                    v_phase, stage, phase, mark, entry_mark, at, local, scale, softcap,
                    False, KEYS, ENTRY, HAS_SOFTCAP,
                )  # fmt: skip
        if MASKED:
            for t in range(gl.maximum(shared, 1), rounds):
                turn = _turn(t, shared, IS_SHARED, HALF)
                if IS_SHARED:  # noqa: SIM102
                    if turn > shared:
                        _pass(k_full, k_free, v_full, v_free, turn - 1, STAGES)
                v_stage = stage
                v_phase = phase
                if (mark & WHOLE) == 0:
                    mbarrier.wait(v_full.index(v_stage), v_phase)
                    _clear(v_ring.index(v_stage), entry_mark, at, ENTRY)
                at = first + turn * N
                mark = next_mark
                next_mark = gl.load(entry_mark + first + _turn(t + 1, shared, IS_SHARED, HALF) * N)
                stage = (before + turn) % STAGES
                phase = ((before + turn) // STAGES) & 1
                acc, high, total, weights = _round(
                    q_tile, k_ring, v_ring, k_full, k_free, v_full, v_free, acc, high, total, weights, v_stage, v_phase,
                    stage, phase, mark, entry_mark, at, local, scale, softcap, True, KEYS, ENTRY, HAS_SOFTCAP,
                )  # fmt: skip
        mbarrier.wait(v_full.index(stage), phase)
        if MASKED:  # noqa: SIM102
            if (mark & WHOLE) == 0:
                _clear(v_ring.index(stage), entry_mark, at, ENTRY)
        acc = warpgroup_mma(weights, v_ring.index(stage), acc, is_async=True)
        acc = warpgroup_mma_wait(0, deps=[acc])
        mbarrier.arrive(v_free.index(stage), count=1)
    norm = gl.where(total == 0.0, 1.0, total)
    lse = gl.convert_layout(high + gl.log2(norm), gl.SliceLayout(1, OUT))
    return acc * gl.convert_layout(1.0 / norm, gl.SliceLayout(1, OUT))[:, None], lse


@gluon.jit
def _pass(k_full, k_free, v_full, v_free, number, STAGES: gl.constexpr):
    """A round of the other half: waited for all the same, so that no phase of a barrier is missed."""
    stage = number % STAGES
    phase = (number // STAGES) & 1
    mbarrier.wait(k_full.index(stage), phase)
    mbarrier.arrive(k_free.index(stage), count=1)
    mbarrier.wait(v_full.index(stage), phase)
    mbarrier.arrive(v_free.index(stage), count=1)


@gluon.jit
def _masked(
    items, entry_mark, k_ring, v_ring, q_tiles, results, lses, k_full, k_free, v_full, v_free, q_full,
    result_full, scale, softcap,
    HEADS: gl.constexpr, GROUP_PAD: gl.constexpr, D: gl.constexpr, KEYS: gl.constexpr, ENTRY: gl.constexpr,
    STAGES: gl.constexpr, HAS_SOFTCAP: gl.constexpr,
):  # fmt: skip
    """The rounds that few rows see, of one half of the tile after the other, into results [2, 64, D], lses [2, 64]."""
    record = items + gl.program_id(0) // HEADS * FIELDS
    first = gl.load(record + FIRST_MASKED)
    before = 0
    for half in range(2):
        rounds = gl.load(record + MASKED + half)
        if rounds > 0:
            acc, lse = _attend(
                q_tiles.index(half), q_full.index(half), k_ring, v_ring, k_full, k_free, v_full, v_free, entry_mark,
                first, before, 0, rounds, half, scale, softcap, False, True, 0, GROUP_PAD, D, KEYS,
                ENTRY, STAGES, HAS_SOFTCAP,
            )  # fmt: skip
            results.index(half).store(acc.to(results.dtype))
            lses.index(half).store(lse)
            gl.thread_barrier()
            mbarrier.arrive(result_full.index(half), count=1)
        before += rounds
        first += rounds * (KEYS // ENTRY)


@gluon.jit
def _rows(record, head, HALF: gl.constexpr, GROUP: gl.constexpr, GROUP_PAD: gl.constexpr, ROW: gl.constexpr):
    """Of the rows of a half their query token, -1 for none, and their query head."""
    rows = gl.arange(0, HALF_ROWS, layout=ROW)
    token = gl.load(record + QUERIES + HALF * (HALF_ROWS // GROUP_PAD) + rows // GROUP_PAD) - 1
    return gl.where(rows % GROUP_PAD < GROUP, token, -1), head * GROUP + rows % GROUP_PAD


@gluon.jit
def _in_a_row(x):
    """Of every 32 columns the pair 4 j + l as the pair j + 4 l. What a thread holds of a product's result, every fourth
    pair, then lies in a row, and is stored and loaded at once. Its own inverse."""
    return x.reshape([HALF_ROWS, x.shape[1] // 32, 4, 4, 2]).permute((0, 1, 3, 2, 4)).reshape([HALF_ROWS, x.shape[1]])


@gluon.jit
def _shared(
    q, out, partial, partial_lse, arrivals, sinks, items, entry_mark, k_ring, v_ring, q_tiles, results, lses, k_full,
    k_free, v_full, v_free, q_asked, q_full, result_full, q_stride_t, q_stride_h, out_stride_t, out_stride_h, scale,
    softcap,
    HALF: gl.constexpr, HEADS: gl.constexpr, GROUP: gl.constexpr, GROUP_PAD: gl.constexpr, D: gl.constexpr,
    KEYS: gl.constexpr, ENTRY: gl.constexpr, STAGES: gl.constexpr, HAS_OWN: gl.constexpr, HAS_SOFTCAP: gl.constexpr,
    HAS_SINKS: gl.constexpr, EARLY: gl.constexpr,
):  # fmt: skip
    """The rounds that all rows see, of one half of the tile, and what becomes of all its rows' results."""
    BLOCKED: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [gl.num_warps(), 1], [1, 0])
    ROW: gl.constexpr = gl.SliceLayout(1, BLOCKED)
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, D, 16])
    # OUT after `_in_a_row`.
    IN_A_ROW: gl.constexpr = gl.DistributedLinearLayout(
        reg_bases=[[0, 1], [0, 2], [0, 4], [8, 0], [0, 32], [0, 64]],
        lane_bases=[[0, 8], [0, 16], [1, 0], [2, 0], [4, 0]], warp_bases=[[16, 0], [32, 0]], block_bases=[],
        shape=[HALF_ROWS, D],
    )  # fmt: skip
    dtype: gl.constexpr = q.dtype.element_ty
    head = gl.program_id(0) % HEADS
    record = items + gl.program_id(0) // HEADS * FIELDS
    shared = gl.load(record + SHARED)
    rounds = shared + gl.load(record + OWN)
    first = gl.load(record + FIRST)
    masked = gl.load(record + MASKED + HALF)
    parts = gl.load(record + PARTS)
    part = gl.load(record + PART)
    slot0 = gl.load(record + SLOT0)
    merges = gl.load(record + MERGES + HALF)
    counter = arrivals + (gl.load(record + TILE) * 2 + HALF) * HEADS + head
    dims = gl.arange(0, D, layout=gl.SliceLayout(0, BLOCKED))
    token, q_head = _rows(record, head, HALF, GROUP, GROUP_PAD, ROW)
    q_row = q + gl.maximum(token, 0).to(gl.int64) * q_stride_t + q_head * q_stride_h
    if EARLY:
        gdc_wait()
    queries = gl.load(q_row[:, None] + dims[None, :], mask=(token >= 0)[:, None], other=0.0)
    mbarrier.arrive(q_asked.index(HALF), count=1)
    q_tiles.index(HALF).store(queries)
    fence_async_shared()
    gl.thread_barrier()
    mbarrier.arrive(q_full.index(HALF), count=1)
    acc, lse = _attend(
        q_tiles.index(HALF), q_full.index(HALF), k_ring, v_ring, k_full, k_free, v_full, v_free, entry_mark,
        first, 0, shared, rounds, HALF, scale, softcap, True, HAS_OWN, HALF, GROUP_PAD, D, KEYS, ENTRY, STAGES,
        HAS_SOFTCAP,
    )  # fmt: skip
    if masked > 0:
        mbarrier.wait(result_full.index(HALF), 0)
        acc, lse = _merge(acc, lse, results.index(HALF).load(OUT), lses.index(HALF).load(gl.SliceLayout(1, OUT)))
    rows = gl.arange(0, HALF_ROWS, layout=gl.SliceLayout(1, OUT))
    cell = (slot0.to(gl.int64) * HEADS + head) * (2 * HALF_ROWS) + HALF * HALF_ROWS
    hop: gl.constexpr = HEADS * 2 * HALF_ROWS
    partial_lse += cell
    partial += cell * D
    place = gl.arange(0, HALF_ROWS, layout=gl.SliceLayout(1, IN_A_ROW))[:, None] * D
    place += gl.arange(0, D, layout=gl.SliceLayout(0, IN_A_ROW))[None, :]
    if part != merges:
        gl.store(partial_lse + part * hop + rows, lse)
        mine = gl.convert_layout(_in_a_row(acc.to(dtype)), IN_A_ROW, assert_trivial=True)
        gl.store(partial + part * (hop * D) + place, mine)
        gl.thread_barrier()  # all threads' results are stored before they are counted
        gl.atomic_add(counter, 1, sem="release", scope="gpu")
    else:
        if parts > 1:
            while gl.atomic_add(counter, 0, sem="acquire", scope="gpu") < parts - 1:
                pass
            gl.thread_barrier()
            gl.store(counter, 0)
            for i in range(parts - 1):
                other = i + (i >= part).to(gl.int32)
                theirs = _in_a_row(gl.load(partial + other * (hop * D) + place, cache_modifier=".cg"))
                theirs_lse = gl.load(partial_lse + other * hop + rows, cache_modifier=".cg")
                acc, lse = _merge(acc, lse, gl.convert_layout(theirs, OUT, assert_trivial=True), theirs_lse)
        if HAS_SINKS:  # a sink joins the denominator
            is_head = rows % GROUP_PAD < GROUP
            sink = gl.load(sinks + head * GROUP + rows % GROUP_PAD, mask=is_head, other=0.0).to(gl.float32) * LOG2E
            acc *= (1.0 / (1.0 + gl.exp2(sink - lse)))[:, None]
        # Through the place of the queries, which nobody needs any more: rows leave whole.
        q_tiles.index(HALF).store(acc.to(dtype))
        gl.thread_barrier()
        token, q_head = _rows(record, head, HALF, GROUP, GROUP_PAD, ROW)
        out_row = out + gl.maximum(token, 0).to(gl.int64) * out_stride_t + q_head * out_stride_h
        gl.store(out_row[:, None] + dims[None, :], q_tiles.index(HALF).load(BLOCKED), mask=(token >= 0)[:, None])


@gluon.jit
def _merge(acc, lse, other, other_lse):
    """Of two normalised results the one of all their keys."""
    peak = gl.maximum(lse, other_lse)
    mine = gl.exp2(lse - peak)
    theirs = gl.exp2(other_lse - peak)
    share = 1.0 / (mine + theirs)
    acc = acc * (mine * share)[:, None] + other.to(gl.float32) * (theirs * share)[:, None]
    return acc, peak + gl.log2(mine + theirs)


@gluon.jit
def _barriers(N: gl.constexpr):
    return gl.allocate_shared_memory(gl.int64, [N, 1], mbarrier.MBarrierLayout())


@gluon.jit
def specialized_attention_kernel(
    q, k_cache, v_cache, out, partial, partial_lse, arrivals, sinks, items, entry_block, entry_mark,
    q_stride_t, q_stride_h, out_stride_t, out_stride_h, scale, softcap,
    HEADS: gl.constexpr, GROUP: gl.constexpr, GROUP_PAD: gl.constexpr, D: gl.constexpr, ENTRY: gl.constexpr,
    KEYS: gl.constexpr, SHARED_STAGES: gl.constexpr, MASKED_STAGES: gl.constexpr, HAS_OWN: gl.constexpr,
    HAS_SOFTCAP: gl.constexpr, HAS_SINKS: gl.constexpr, EARLY: gl.constexpr,
):  # fmt: skip
    """One item for one kv head. q, out [T, Hq, D] by strides; caches: descriptors of [entries * ENTRY, HEADS * D] with
    boxes of [ENTRY, 64]; partial [slots, HEADS, 128, D], partial_lse without the last dimension; arrivals
    [tiles, 2, HEADS] int32, zero before and after. EARLY: it starts while the kernel before it ends, and lets the next
    one start beside it."""
    dtype: gl.constexpr = q.dtype.element_ty
    LAYOUT: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    shared_k = gl.allocate_shared_memory(dtype, [SHARED_STAGES, KEYS, D], LAYOUT)
    shared_v = gl.allocate_shared_memory(dtype, [SHARED_STAGES, KEYS, D], LAYOUT)
    masked_k = gl.allocate_shared_memory(dtype, [MASKED_STAGES, KEYS, D], LAYOUT)
    masked_v = gl.allocate_shared_memory(dtype, [MASKED_STAGES, KEYS, D], LAYOUT)
    q_tiles = gl.allocate_shared_memory(dtype, [2, HALF_ROWS, D], LAYOUT)
    results = gl.allocate_shared_memory(dtype, [2, HALF_ROWS, D], LAYOUT)
    LINE: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    lses = gl.allocate_shared_memory(gl.float32, [2, HALF_ROWS], LINE)
    shared_k_full = _barriers(SHARED_STAGES)
    shared_k_free = _barriers(SHARED_STAGES)
    shared_v_full = _barriers(SHARED_STAGES)
    shared_v_free = _barriers(SHARED_STAGES)
    masked_k_full = _barriers(MASKED_STAGES)
    masked_k_free = _barriers(MASKED_STAGES)
    masked_v_full = _barriers(MASKED_STAGES)
    masked_v_free = _barriers(MASKED_STAGES)
    q_asked = _barriers(2)
    q_full = _barriers(2)
    result_full = _barriers(2)
    for i in gl.static_range(SHARED_STAGES):
        mbarrier.init(shared_k_full.index(i), count=1)
        mbarrier.init(shared_v_full.index(i), count=1)
        mbarrier.init(shared_k_free.index(i), count=2)
        mbarrier.init(shared_v_free.index(i), count=2)
    for i in gl.static_range(MASKED_STAGES):
        mbarrier.init(masked_k_full.index(i), count=1)
        mbarrier.init(masked_v_full.index(i), count=1)
        mbarrier.init(masked_k_free.index(i), count=1)
        mbarrier.init(masked_v_free.index(i), count=1)
    for i in gl.static_range(2):
        mbarrier.init(q_asked.index(i), count=1)
        mbarrier.init(q_full.index(i), count=1)
        mbarrier.init(result_full.index(i), count=1)
    if EARLY:
        gdc_launch_dependents()
    gl.warp_specialize(
        [
            (_shared, (
                q, out, partial, partial_lse, arrivals, sinks, items, entry_mark, shared_k, shared_v, q_tiles, results,
                lses, shared_k_full, shared_k_free, shared_v_full, shared_v_free, q_asked, q_full, result_full,
                q_stride_t, q_stride_h, out_stride_t, out_stride_h, scale, softcap, 0, HEADS, GROUP, GROUP_PAD, D,
                KEYS, ENTRY, SHARED_STAGES, HAS_OWN, HAS_SOFTCAP, HAS_SINKS, EARLY,
            )),
            (_shared, (
                q, out, partial, partial_lse, arrivals, sinks, items, entry_mark, shared_k, shared_v, q_tiles, results,
                lses, shared_k_full, shared_k_free, shared_v_full, shared_v_free, q_asked, q_full, result_full,
                q_stride_t, q_stride_h, out_stride_t, out_stride_h, scale, softcap, 1, HEADS, GROUP, GROUP_PAD, D,
                KEYS, ENTRY, SHARED_STAGES, HAS_OWN, HAS_SOFTCAP, HAS_SINKS, EARLY,
            )),
            (_masked, (
                items, entry_mark, masked_k, masked_v, q_tiles, results, lses, masked_k_full, masked_k_free,
                masked_v_full, masked_v_free, q_full, result_full, scale, softcap, HEADS, GROUP_PAD, D, KEYS, ENTRY,
                MASKED_STAGES, HAS_SOFTCAP,
            )),
            (_fetch, (
                k_cache, v_cache, items, entry_block, shared_k, shared_v, shared_k_full, shared_k_free,
                shared_v_full, shared_v_free, q_asked, True, HEADS, D, ENTRY, KEYS, SHARED_STAGES, EARLY,
            )),
            (_fetch, (
                k_cache, v_cache, items, entry_block, masked_k, masked_v, masked_k_full, masked_k_free,
                masked_v_full, masked_v_free, q_asked, False, HEADS, D, ENTRY, KEYS, MASKED_STAGES, EARLY,
            )),
        ],
        # What is left of the registers, 160 a thread, is the first group's.
        [4, 4, 1, 1], [160, 160, 32, 32],
    )  # fmt: skip
