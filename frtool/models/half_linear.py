"""Linear layers of fp32 models on a CPU whose weights are kept in fp16: half the bytes to read, products in fp32.

Most models are published in bf16, and fp16 holds such weights as they are, the least of them to 3e-8. FBGEMM, which
torch carries, converts them within its products.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from .apart import ApartLinear, Product
from .packed import PackedLinear
from .row_layout import rows_agree

_NEAR = 2.0**-25
"""Half the distance of the least numbers in fp16."""
_MULTIPLES = (3, 4, 6, 8, 12, 16)


class HalfLinear(ApartLinear):
    """As `packed.PackedLinear`, of fp32 weights rounded to fp16."""

    def __init__(self, *layers: nn.Linear, **options: Any) -> None:
        super().__init__(*layers, **options)
        self.rows = half_rows()
        self.nbytes = 2 * self.out_features * self.in_features

    def pack(self, weight: torch.Tensor) -> Product:
        return _product_with(weight)


def _product_with(weight: torch.Tensor) -> Product:
    op: Any = torch.ops.quantized
    packed, multiply = op.linear_prepack_fp16(weight, None), op.linear_dynamic_fp16
    return lambda x: multiply(x, packed)


def linear_for(weights: Iterable[torch.Tensor], rounds: bool = False) -> type[PackedLinear] | type[HalfLinear]:
    """How to pack these weights: in fp16 where they are fp32, fp16 holds them and this torch computes with them so,
    fast and each row by itself. `rounds`: they come out of fewer bits, and need not be held to the last one."""
    weights = list(weights)
    if any(weight.dtype != torch.float32 for weight in weights) or not (is_fast() and half_rows()):
        return PackedLinear
    return HalfLinear if all(is_held(weight, rounds) for weight in weights) else PackedLinear


def is_held(weight: torch.Tensor, rounds: bool = False) -> bool:
    """Whether fp16 has the numbers of `weight` within 3e-8; with `rounds`, whether none is too large."""
    if rounds:
        return bool(weight.abs().max() <= torch.finfo(torch.float16).max)
    return bool((weight.half().float() - weight).abs_().max() <= _NEAR)


def is_fast() -> bool:
    """Whether this processor is of the one kind where such products were measured, and faster than those of oneDNN."""
    return torch.backends.cpu.get_cpu_capability() == "AVX2"


@lru_cache
@torch.inference_mode()
def half_rows() -> int:
    """Rows that products with weights in fp16 need a multiple of, so that each has the same bits whatever the others
    are. Found by trial: FBGEMM has other code for one and two rows, which are what is left of many where it computes
    six at once. 0 where this torch has no such products, or wrong ones."""
    generator = torch.Generator().manual_seed(0)
    # Outputs that are no multiple of what is computed at once, and sums that are cut in two.
    width, length, most = 40, 560, 252
    scale = 2.0 ** (-torch.arange(width) / 2)
    weight = torch.randn(width, length, generator=generator) * scale.unsqueeze(1)
    x = torch.randn(most, length, generator=generator)
    try:
        product = _product_with(weight)
        exact = x.double() @ weight.half().double().T
        if not torch.allclose(product(x).double(), exact, rtol=1e-4, atol=1e-5):
            return 0

        def agree(multiple: int) -> bool:
            return rows_agree(lambda rows, _: product(rows), x, x, multiple, range(1, most // multiple))

        return next((multiple for multiple in _MULTIPLES if agree(multiple)), 0)
    except (RuntimeError, AttributeError, NotImplementedError):  # another build of torch, another processor
        return 0
