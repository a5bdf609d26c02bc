"""How many rows of a matrix product may be computed at once, so that each has the same bits in any company.

oneDNN takes other code for other numbers of rows. On most processors that changes no bit; with AMX it does: up to 32
rows of one matrix agree, or up to 128 if its weight is packed for one row, depending on its shape. So layouts are
tried on each shape, and a product of more rows than agree is computed in pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class RowLayout:
    """How a weight is packed, and in which pieces its products are computed."""

    packed_for: int | None = None
    """Rows that oneDNN lays the weight out for; its own choice if None."""
    most: int | None = None
    """Rows of one product at most."""


ANY_ROWS = RowLayout()
"""Where no number of rows changes a bit."""
_BY_SHAPE = (RowLayout(1, 128), RowLayout(1, 64), RowLayout(None, 32))
"""Where some do: the fastest first."""
_COUNTS = (9, 17, 1, 2, 3, 5, 8, 16, 24, 32)
"""Rows that are tried, in multiples of the least; those that differ most often come first."""
_results: dict[tuple[int, int, torch.dtype, int], RowLayout] = {}


def pack(weight: torch.Tensor, layout: RowLayout) -> torch.Tensor:
    """`weight` `[out, in]` as oneDNN wants it."""
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, layout.packed_for)
    return packed


def layout_of(weight: torch.Tensor, least: int) -> RowLayout:
    """The fastest layout in which products of `weight` `[out, in]` with multiples of `least` rows have rows that do not
    depend on one another. Found by trial, once for a shape."""
    key = (*weight.shape, weight.dtype, least)
    if key not in _results:
        _results[key] = next(_agreeing(weight, least), RowLayout(None, least))
    return _results[key]


def _agreeing(weight: torch.Tensor, least: int) -> Iterator[RowLayout]:
    generator = torch.Generator().manual_seed(0)
    width, length = weight.shape
    rows = max(layout.most or 0 for layout in _BY_SHAPE)
    x, term = (torch.randn(rows, size, generator=generator).to(weight.dtype) for size in (length, width))
    for layout in _BY_SHAPE:
        assert layout.most is not None
        part = slice(0, layout.most)
        packed = pack(weight, layout)
        if all(rows_agree(product, x[part], term[part], least) for product in _products(packed)):
            yield layout


def _products(packed: torch.Tensor) -> tuple[Product, Product]:
    op: Any = torch.ops.mkldnn._linear_pointwise
    return (
        lambda x, _: op.default(x, packed, None, "none", [], ""),
        lambda x, term: op.binary(x, term, packed, None, "add"),
    )


def rows_agree(
    product: Product, x: torch.Tensor, term: torch.Tensor, least: int, counts: Iterable[int] = _COUNTS
) -> bool:
    """Whether multiples of `least` rows, of which `counts` are tried, each give what they give among all. x
    `[rows, in]`, term `[rows, out]`."""
    whole = product(x, term)
    for count in counts:
        size = count * least
        if size >= len(x):
            continue
        some = slice(len(x) - size, None) if count % 2 else slice(least // 2, least // 2 + size)
        if not torch.equal(product(x[some].clone(), term[some].clone()), whole[some]):
            return False
    return True
