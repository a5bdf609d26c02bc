"""A tree's schedule in device buffers that captured graphs can keep reading."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from . import specialized
from .allocator import PhysicalKVAllocator
from .cost import CostRule, TileShape, shared_load
from .plan import TreePlan
from .schedule import ITEM_FIELDS, WIDE, Schedule, grown, schedule_apart, schedule_tree
from .specialized import SpecializedRule, grown_specialized, schedule_specialized
from .tuning import KernelConfig, merge_rows, multiprocessors, padded_head_dim

TABLES = ("entry_block", "entry_mark", "query_token", "query_pos")
"""What every item's fields point into."""


@dataclass(frozen=True, slots=True)
class Apart:
    """How items run where a launch of their own pays for wide ones."""

    wide: KernelConfig
    others: KernelConfig
    rule: CostRule
    least: float
    """`shared_load` from which on it does."""


class Launch:
    """A schedule for one number of query heads, in device buffers of fixed capacity.

    Captured graphs hold the buffers' addresses and the capacity's grid: as long as `load` returns True they stay valid.
    """

    def __init__(
        self, allocator: PhysicalKVAllocator, group: int, config: KernelConfig, rule: CostRule, apart: Apart | None,
        specialized_rule: SpecializedRule | None = None,
    ) -> None:  # fmt: skip
        """specialized_rule: which trees are for `specialized_kernel`; None where it cannot run."""
        self.rule = rule
        self._whole = config
        self._apart = apart
        self._specialized_rule = specialized_rule
        configs = [config] if apart is None else [config, apart.wide, apart.others]
        self.apart = False
        """Whether wide items have a launch of their own."""
        self.specialized = False
        """Whether the schedule is one for `specialized_kernel`."""
        self.spreads = False
        """Whether there warps that attend to shared keys also take masked ones."""
        self.heads = allocator.num_kv_heads
        self.group_pad = 1 << (group - 1).bit_length()
        entry = self._tile_entry = _entry_size(allocator.block_size, configs)
        self._shape = _tile_shape(config, config, self.group_pad, entry)
        if apart is not None:
            self._shape_apart = _tile_shape(apart.wide, apart.others, self.group_pad, entry)
        most_keys = max(max(c.wide_keys, c.narrow_keys) for c in configs)
        if specialized_rule is not None:
            most_keys = max(most_keys, specialized.KEYS)
            self._specialized_entry = specialized.entry_size(allocator.block_size)
            entry = min(entry, self._specialized_entry)
        self._device = allocator.device
        self._dtype = allocator.dtype
        self._width = padded_head_dim(allocator.head_dim)
        # What the kernel reads past the end: the next round's entries, a tile of queries, every program's first item.
        entries = 2 * most_keys // entry + 2
        queries = max(max(c.wide_rows, c.group_rows) for c in configs)
        self._spare = {"query_token": queries, "query_pos": queries}
        self._spare["wide_items"] = -(-multiprocessors(allocator.device) // self.heads) * ITEM_FIELDS
        self._spare |= {"entry_block": entries, "entry_mark": 2 * entries}
        self._capacity: dict[str, int] = {}
        self.item_capacity = 0
        self.partial: torch.Tensor
        self.arrivals: torch.Tensor
        self._loaded: tuple[Schedule, TreePlan] | None = None

    @property
    def entry(self) -> int:
        """Tokens of an entry."""
        return self._specialized_entry if self.specialized else self._tile_entry

    @property
    def configs(self) -> tuple[KernelConfig, KernelConfig]:
        """Of wide items and of the others."""
        if self._apart is not None and self.apart:
            return self._apart.wide, self._apart.others
        return self._whole, self._whole

    def load(self, tree: TreePlan) -> bool:
        """Schedule `tree` and copy it to the device; False if buffers had to grow or the launch to be another."""
        schedule = None
        before = self.apart, self.specialized, self.spreads
        if self._loaded is not None:
            follow = grown_specialized if self.specialized else grown
            schedule = follow(*self._loaded, tree, self.entry)
        if schedule is None:
            schedule = self._schedule(tree)
        self._loaded = (schedule, tree)
        wide = int(np.count_nonzero(schedule.items[:, 0] == WIDE)) if self.apart else 0
        self.num_items = len(schedule.items) - wide
        tables = {name: getattr(schedule, name).view(np.int32) for name in TABLES}
        tables |= {"wide_items": schedule.items[:wide].ravel(), "items": schedule.items[wide:].ravel()}
        tables["wide_count"] = np.array([wide], np.int32)
        sizes = {name: len(table) for name, table in tables.items()}
        need = sizes | {"slots": schedule.num_slots, "groups": schedule.num_groups}
        same = (self.apart, self.specialized, self.spreads) == before
        if self.specialized != before[1]:  # another kind of items
            self._capacity, self.item_capacity = {}, 0
        fits = same and all(size <= self._capacity.get(name, -1) for name, size in need.items())
        if not fits:
            self._allocate(schedule, sizes)
        # The caching host allocator keeps pinned memory until the copy is done.
        staging = torch.empty(len(self._buffer), dtype=torch.int32, pin_memory=self._device.type == "cuda")
        host = staging.numpy()
        host.fill(0)
        host[self._places["query_token"]] = -1
        for name, table in tables.items():
            start = self._places[name].start
            host[start : start + len(table)] = table
        self._buffer.copy_(staging, non_blocking=True)
        return fits

    def _schedule(self, tree: TreePlan) -> Schedule:
        schedule = None
        if self._specialized_rule is not None:
            schedule = schedule_specialized(
                tree, self._specialized_entry, self.group_pad, self.heads, self._specialized_rule,
                stays=self.specialized,
            )  # fmt: skip
        self.specialized = schedule is not None
        if schedule is not None:
            self.apart = False
            # Once they do, they can: graphs are captured so.
            self.spreads = self.spreads or bool(schedule.items[:, specialized.OWN].any())
            return schedule
        if self._apart is not None:
            # Once apart, a tree stays so until it has lost half of what it shares: its graphs are captured so.
            least = self._apart.least / 2 if self.apart else self._apart.least
            shape = self._shape_apart
            if shared_load(tree, self.heads, shape.tile_queries, self._apart.rule.multiprocessors) >= least:
                schedule = schedule_apart(tree, shape, self.heads, self._apart.rule)
                if schedule is not None:
                    self.apart = True
                    return schedule
        self.apart = False
        return schedule_tree(tree, self._shape, self.heads, self.rule)

    def _allocate(self, schedule: Schedule, sizes: dict[str, int]) -> None:
        # Never less than before, or graphs of a tree that sways would go stale again and again. Tables grow with every
        # token, and room in them costs nothing; room for items is paid for with programs that find nothing to do, which
        # a tree that has not yet grown is spared.
        before = self._capacity
        grows = bool(before)
        self._capacity = {n: max(size + size // 2 + 256, before.get(n, 0)) for n, size in sizes.items()}
        fields, rows = ITEM_FIELDS, self._whole.group_rows
        room = 32 if grows else min(max(96 // self.heads, 1), 32)
        capacity = self.num_items + max(self.num_items // 4, room)
        if self.specialized and self._specialized_rule is not None:
            fields, rows = specialized.ITEM_FIELDS, specialized.ROWS
            capacity = self._specialized_rule.item_capacity(self.num_items, self.heads)
        self.item_capacity = max(capacity, self.item_capacity)
        self._capacity["items"] = self.item_capacity * fields
        starts = {}
        total = 0
        for name in sizes:
            starts[name] = total
            total += -(-(self._capacity[name] + self._spare.get(name, 0)) // 32) * 32
        self._buffer = torch.zeros(total, dtype=torch.int32, device=self._device)
        ends = [*list(starts.values())[1:], total]
        self._places = {n: slice(a, b) for (n, a), b in zip(starts.items(), ends, strict=True)}
        self.tables = {n: self._buffer[place] for n, place in self._places.items()}
        self.tables["entry_mark"] = self.tables["entry_mark"].view(torch.int64)
        for name, size in (("slots", schedule.num_slots), ("groups", schedule.num_groups)):
            self._capacity[name] = max(size + max(size // 4, 64), before.get(name, 0))
        shape = (self._capacity["slots"], self.heads, rows)
        self.partial = torch.empty(*shape, self._width, dtype=self._dtype, device=self._device)
        self.partial_lse = torch.empty(shape, dtype=torch.float32, device=self._device)
        self.arrivals = torch.zeros(self._capacity["groups"], self.heads, dtype=torch.int32, device=self._device)


def _entry_size(block_size: int, configs: list[KernelConfig]) -> int:
    """The largest part of a block that fits a round of every kind."""
    most = min(min(c.narrow_keys, c.wide_keys, c.edge_keys) for c in configs)
    return max(size for size in range(1, most + 1) if block_size % size == 0)


def _tile_shape(wide: KernelConfig, others: KernelConfig, group_pad: int, entry: int) -> TileShape:
    rows = others.group_rows
    return TileShape(
        rows // group_pad, wide.wide_rows // rows, wide.wide_keys, others.narrow_keys, entry,
        max(merge_rows(others) // rows, 1),
    )  # fmt: skip
