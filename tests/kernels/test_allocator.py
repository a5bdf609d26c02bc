from __future__ import annotations

import numpy as np
import pytest
import torch

from frtool.kernels.allocator import OutOfBlocks, PhysicalKVAllocator, UnknownBranch


def small(num_blocks: int = 16, block_size: int = 4, **options) -> PhysicalKVAllocator:
    return PhysicalKVAllocator(num_blocks, block_size, num_kv_heads=1, head_dim=2, **options)


def tag(allocator: PhysicalKVAllocator, branch_id: int, start: int, values: list[int]) -> None:
    """Store one number per token, in every layer and in both K and V."""
    slots = torch.from_numpy(allocator.slots(branch_id, start, start + len(values)))
    rows = torch.tensor(values, dtype=torch.float32)[:, None, None].expand(-1, 1, 2)
    for layer in range(allocator.num_layers):
        allocator.write(layer, slots, rows + 1000 * layer, -rows)


def tags(allocator: PhysicalKVAllocator, branch_id: int, layer: int = 0) -> list[int]:
    slots = torch.from_numpy(allocator.slots(branch_id))
    k = allocator.k_cache[layer].flatten(0, 1)[slots, 0, 0] - 1000 * layer
    v = allocator.v_cache[layer].flatten(0, 1)[slots, 0, 0]
    assert torch.equal(k, -v)
    return k.int().tolist()


def test_the_published_example_fits_1152_blocks_exactly():
    allocator = PhysicalKVAllocator(num_blocks=1152, block_size=16, num_kv_heads=1, head_dim=1, device="cpu")
    root = allocator.alloc_branch(num_tokens=2048)
    for _ in range(256):
        allocator.alloc_branch(2112, parent_branch_id=root.branch_id, fork_position=2048)
    allocator.check()
    assert allocator.free_blocks == 0
    assert allocator.stats().physical_tokens == 2048 + 256 * 64
    assert allocator.stats().logical_tokens == 2048 + 256 * 2112


def test_the_published_pool_of_1024_blocks_runs_out_at_branch_225_and_names_the_numbers():
    allocator = PhysicalKVAllocator(num_blocks=1024, block_size=16, num_kv_heads=1, head_dim=1, device="cpu")
    root = allocator.alloc_branch(num_tokens=2048)
    for _ in range((1024 - 128) // 4):
        allocator.alloc_branch(2112, parent_branch_id=root.branch_id, fork_position=2048)
    before = allocator.stats()
    with pytest.raises(OutOfBlocks, match=r"4 more KV blocks needed, 0 free of 1024") as caught:
        allocator.alloc_branch(2112, parent_branch_id=root.branch_id, fork_position=2048)
    assert (caught.value.needed, caught.value.free) == (4, 0)
    assert allocator.stats() == before
    allocator.check()


@pytest.mark.parametrize(("block_size", "copied", "from_length"), [(4, 0, 1), (8, 0, 1), (16, 8, 65)])
def test_64_branches_over_a_prompt_of_1000_tokens_hold_a_tenth_more_than_is_distinct(block_size, copied, from_length):
    """A branch that begins inside a block copies the tokens before it there: the price of pages, 64 * 8 of size 16."""
    allocator = PhysicalKVAllocator(2048, block_size, num_kv_heads=1, head_dim=1)
    prompt = allocator.alloc_branch(1000).branch_id
    branches = [allocator.fork(prompt).branch_id for _ in range(64)]
    for length in range(1, 101):
        allocator.append_many(branches, [1] * 64)
        stats = allocator.stats()
        distinct = 1000 + 64 * length
        assert stats.logical_tokens == 1000 + 64 * (1000 + length)
        assert stats.physical_tokens == distinct + 64 * copied
        assert (stats.physical_tokens <= 1.1 * distinct) == (length >= from_length)
    allocator.check()


def test_a_fork_takes_no_block_and_shares_its_parents_table():
    allocator = small()
    parent = allocator.alloc_branch(10).branch_id
    free = allocator.free_blocks
    child = allocator.fork(parent)
    assert child.length == 10
    assert allocator.free_blocks == free
    assert np.array_equal(allocator.block_table(child.branch_id), allocator.block_table(parent))


def test_a_fork_inside_a_branch_holds_only_the_blocks_up_to_there():
    allocator = small()
    parent = allocator.alloc_branch(16).branch_id
    child = allocator.fork(parent, 5).branch_id
    assert allocator.block_table(child).tolist() == allocator.block_table(parent)[:2].tolist()
    assert allocator.fork(parent, 0).length == 0


@pytest.mark.parametrize("num_layers", [1, 3])
def test_the_first_write_after_a_fork_copies_the_partial_tail_in_every_layer(num_layers):
    allocator = small(num_layers=num_layers)
    parent = allocator.alloc_branch(6).branch_id
    tag(allocator, parent, 0, [0, 1, 2, 3, 4, 5])
    child = allocator.fork(parent).branch_id
    allocator.append(child)
    tag(allocator, child, 6, [60])
    allocator.append(parent, 3)
    tag(allocator, parent, 6, [6, 7, 8])
    for layer in range(num_layers):
        assert tags(allocator, child, layer) == [0, 1, 2, 3, 4, 5, 60]
        assert tags(allocator, parent, layer) == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert allocator.stats().copies == 1
    allocator.check()


def test_the_last_holder_of_a_tail_writes_in_place():
    allocator = small()
    parent = allocator.alloc_branch(6).branch_id
    child = allocator.fork(parent).branch_id
    table = allocator.block_table(child).tolist()
    allocator.free_branch(parent)
    allocator.append(child)
    assert allocator.block_table(child).tolist() == table
    assert allocator.stats().copies == 0


def test_a_branch_forked_inside_a_full_block_copies_it_when_it_grows():
    allocator = small()
    parent = allocator.alloc_branch(8).branch_id
    tag(allocator, parent, 0, list(range(8)))
    child = allocator.alloc_branch(9, parent_branch_id=parent, fork_position=6).branch_id
    tag(allocator, child, 6, [60, 70, 80])
    assert tags(allocator, parent) == list(range(8))
    assert tags(allocator, child) == [0, 1, 2, 3, 4, 5, 60, 70, 80]
    allocator.check()


def test_append_many_grows_all_holders_of_one_tail_with_one_copy_less_than_holders():
    allocator = small(num_blocks=8)
    parent = allocator.alloc_branch(6).branch_id
    tag(allocator, parent, 0, list(range(6)))
    branches = [parent, *(allocator.fork(parent).branch_id for _ in range(3))]
    assert allocator.blocks_needed(branches, [1, 1, 1, 1]) == 3
    allocator.append_many(branches, [1, 2, 2, 1])
    allocator.check()
    assert allocator.stats().copies == 3
    for i, branch in enumerate(branches):
        tag(allocator, branch, 6, [10 * i])
    for i, branch in enumerate(branches):
        assert tags(allocator, branch)[:7] == [0, 1, 2, 3, 4, 5, 10 * i]


def test_append_many_changes_nothing_when_the_last_branch_does_not_fit():
    allocator = small(num_blocks=4)
    first = allocator.alloc_branch(4).branch_id
    second = allocator.alloc_branch(6).branch_id
    third = allocator.fork(second).branch_id
    before, tables = allocator.stats(), allocator.block_tables([first, second, third]).tolist()
    with pytest.raises(OutOfBlocks) as caught:
        allocator.append_many([first, second, third], [1, 1, 1])
    assert (caught.value.needed, caught.value.free) == (2, 1)
    assert allocator.stats() == before
    assert allocator.block_tables([first, second, third]).tolist() == tables
    allocator.check()


def test_append_many_equals_append_one_by_one():
    together, apart = small(num_blocks=64), small(num_blocks=64)
    for allocator in (together, apart):
        root = allocator.alloc_branch(7).branch_id
        for position in (7, 5, 4, 1):
            allocator.fork(root, position)
    counts = [3, 1, 9, 4, 2]
    together.append_many(range(5), counts)
    for branch, count in enumerate(counts):
        apart.append(branch, count)
    assert together.block_tables(range(5)).tolist() == apart.block_tables(range(5)).tolist()
    assert together.stats() == apart.stats()


def test_freeing_returns_only_what_nobody_else_holds():
    allocator = small()
    parent = allocator.alloc_branch(8).branch_id
    child = allocator.alloc_branch(14, parent_branch_id=parent).branch_id
    allocator.free_branch(parent)
    assert allocator.free_blocks == 16 - 4
    allocator.prune(child)
    assert allocator.free_blocks == 16
    assert allocator.stats().physical_tokens == 0
    allocator.check()


def test_what_is_taken_together_lies_together_and_runs_repeat():
    def blocks() -> list[int]:
        allocator = small(num_blocks=32)
        first = allocator.alloc_branch(40).branch_id
        allocator.free_branch(first)
        return allocator.block_table(allocator.alloc_branch(60).branch_id).tolist()

    assert blocks() == list(range(15))
    assert blocks() == blocks()


def test_stats_count_a_shared_partial_block_up_to_its_longest_holder():
    allocator = small()
    parent = allocator.alloc_branch(7).branch_id
    allocator.fork(parent, 5)
    stats = allocator.stats()
    assert (stats.physical_tokens, stats.logical_tokens, stats.shared_tokens) == (7, 12, 5)
    allocator.free_branch(parent)
    assert allocator.stats().physical_tokens == 5


def test_peaks_outlive_the_branches():
    allocator = small()
    root = allocator.alloc_branch(16).branch_id
    branches = [allocator.fork(root).branch_id for _ in range(3)]
    for branch in [root, *branches]:
        allocator.free_branch(branch)
    stats = allocator.stats()
    block_bytes = 2 * 4 * 1 * 2 * 4
    assert stats.blocks_used == stats.bytes_used == 0
    assert (stats.peak_blocks, stats.peak_bytes) == (4, 4 * block_bytes)
    assert stats.unshared_peak_bytes == 16 * block_bytes
    assert (stats.forks, stats.frees) == (3, 4)


def test_slots_name_block_and_offset_of_every_position():
    allocator = small()
    parent = allocator.alloc_branch(6).branch_id
    child = allocator.alloc_branch(9, parent_branch_id=parent, fork_position=4).branch_id
    table = allocator.block_table(child)
    assert allocator.slots(child).tolist() == [int(table[p // 4]) * 4 + p % 4 for p in range(9)]
    assert allocator.slots(child, 3, 5).tolist() == allocator.slots(child).tolist()[3:5]
    assert allocator.slots(child).dtype == np.int64
    both = np.concatenate([allocator.slots(child, 7), allocator.slots(parent, 3)])
    assert allocator.last_slots([child, parent], [2, 3]).tolist() == both.tolist()


def test_block_tables_are_copies_padded_with_minus_one():
    allocator = small()
    branches = [allocator.alloc_branch(n).branch_id for n in (9, 0, 4)]
    assert allocator.block_tables(branches).tolist() == [[0, 1, 2], [-1, -1, -1], [3, -1, -1]]
    assert allocator.block_table(branches[0]).dtype == np.int32
    allocator.block_table(branches[0])[0] = 7
    allocator.check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_pool_has_the_asked_dtype_and_casts_what_is_written(dtype):
    allocator = PhysicalKVAllocator(2, 4, num_kv_heads=2, head_dim=8, num_layers=2, dtype=dtype)
    assert allocator.k_cache.shape == allocator.v_cache.shape == (2, 2, 4, 2, 8)
    assert allocator.k_cache.dtype == dtype
    k = torch.randn(3, 2, 8)
    allocator.write(1, torch.tensor([1, 6, 2]), k, k.to(dtype))
    assert torch.equal(allocator.k_cache[1].flatten(0, 1)[[1, 6, 2]], k.to(dtype))
    assert not allocator.k_cache[0].any()


def test_the_default_dtype_on_a_cpu_is_float32():
    assert small().dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: a.alloc_branch(-1), "at least 0, not -1"),
        (lambda a: a.alloc_branch(3, fork_position=2), "needs a parent"),
        (lambda a: a.alloc_branch(9, 0, 7), r"fork position 7 is outside branch 0 of 6"),
        (lambda a: a.alloc_branch(3, 0), r"num_tokens 3 is below the fork position 6"),
        (lambda a: a.fork(0, -1), "fork position -1"),
        (lambda a: a.append(0, 0), "at least 1, not 0"),
        (lambda a: a.append_many([0, 0], [1, 1]), "twice"),
        (lambda a: a.append_many([0], [0]), "at least 1, not 0"),
        (lambda a: a.append_many([0], [1, 2]), "1 branches but 2 counts"),
        (lambda a: a.slots(0, 2, 8), "positions 2 to 8 do not lie in branch 0 of 6"),
        (lambda a: a.last_slots([0], [7]), "do not fit"),
        (lambda a: a.write(1, torch.tensor([0]), torch.zeros(1, 1, 2), torch.zeros(1, 1, 2)), "layer 1"),
        (lambda a: a.write(0, torch.tensor([0]), torch.zeros(1, 1, 3), torch.zeros(1, 1, 2)), "must be"),
    ],
)
def test_bad_calls_say_why_and_change_nothing(call, message):
    allocator = small()
    allocator.alloc_branch(6)
    before = allocator.stats()
    with pytest.raises(ValueError, match=message):
        call(allocator)
    assert allocator.stats() == before
    allocator.check()


@pytest.mark.parametrize("name", ["num_blocks", "block_size", "num_kv_heads", "head_dim", "num_layers"])
def test_sizes_below_one_are_refused_by_name(name):
    sizes = {"num_blocks": 4, "block_size": 4, "num_kv_heads": 1, "head_dim": 2, "num_layers": 1, name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
        PhysicalKVAllocator(**sizes)


def test_other_dtypes_are_refused():
    with pytest.raises(ValueError, match=r"not torch\.int8"):
        small(dtype=torch.int8)


@pytest.mark.parametrize("method", ["fork", "append", "free_branch", "length", "block_table", "slots"])
def test_a_freed_branch_is_unknown(method):
    allocator = small()
    branch = allocator.alloc_branch(3).branch_id
    allocator.free_branch(branch)
    with pytest.raises(UnknownBranch, match=f"no live branch has id {branch}") as caught:
        getattr(allocator, method)(branch)
    assert caught.value.branch_id == branch
    assert allocator.alloc_branch(1).branch_id != branch


@pytest.mark.parametrize("corrupt", ["count", "free list", "table"])
def test_check_finds_a_corrupt_ledger(corrupt):
    allocator = small()
    first = allocator.alloc_branch(8).branch_id
    allocator.alloc_branch(8)
    if corrupt == "count":
        allocator._refs[0] += 1
    elif corrupt == "free list":
        allocator._free.pop()
    else:
        allocator._tables[allocator._branches[first]._row, 1] = 3
    with pytest.raises(AssertionError):
        allocator.check()
