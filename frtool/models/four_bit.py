"""Linear layers whose weights have four bits on a CPU: a quarter of the bytes, where reading them is what takes time.

Groups of 32 weights of a row share a scale and a zero, as in GGUF's Q4_1: w = (code - 8) * scale + zero. Weights that
come from such a file keep their codes; any others are rounded to the nearest. Scale and zero are bf16, and so are the
factors and results of products in a model of fp32: only for them torch has vector code, with AVX2 ten times as fast.
Every row of a product has the same bits whatever the others are, from one row on.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import nn

from .apart import ApartLinear, Product
from .row_layout import rows_agree

GROUP = 32
_OUTPUTS = 16
"""torch packs as many outputs at once."""


class FourBitLinear(ApartLinear):
    """As `packed.PackedLinear`, of weights `[out, in]`, out a multiple of 16 and in of 32, rounded to four bits."""

    def pack(self, weight: torch.Tensor) -> Product:
        codes, scales = four_bits(weight)
        op: Any = torch.ops.aten
        packed, scales = op._convert_weight_to_int4pack_for_cpu(codes, 1), scales.bfloat16()
        self.nbytes = packed.nbytes + scales.nbytes
        multiply = op._weight_int4pack_mm_for_cpu

        def product(x: torch.Tensor) -> torch.Tensor:
            rows = x.reshape(-1, self.in_features).bfloat16().contiguous()
            out: torch.Tensor = multiply(rows, packed, GROUP, scales).to(x.dtype).view(*x.shape[:-1], self.out_features)
            return out

        return product

    @staticmethod
    def fits(*layers: nn.Linear) -> bool:
        """Whether these layers, together or apart, can have four-bit weights."""
        return all(layer.in_features % GROUP == 0 and layer.out_features % _OUTPUTS == 0 for layer in layers)


class FilledUp(nn.Module):
    """A layer whose products need a multiple of `least` rows, for callers that have any number."""

    def __init__(self, layer: nn.Module, least: int) -> None:
        super().__init__()
        self.layer = layer
        self._least = least

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.shape[-2]
        missing = -rows % self._least
        if not missing:
            out: torch.Tensor = self.layer(x)
            return out
        filled: torch.Tensor = self.layer(nn.functional.pad(x, (0, 0, 0, missing)))
        return filled.narrow(-2, 0, rows)


def four_bits(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes int32 `[out, in]`, 0 to 15, and scales with zeros fp32 `[in / GROUP, out, 2]` of `weight` `[out, in]`.

    The least and the largest of a group become codes 0 and 15, as far as bf16 scales let them: as Q4_1 does it.
    """
    rows, length = weight.shape
    groups = weight.float().view(rows, length // GROUP, GROUP)
    low, high = groups.amin(-1), groups.amax(-1)
    scale = ((high - low) / 15).bfloat16().float()
    equal = scale == 0
    zero = torch.where(equal, low, low + 8 * scale).bfloat16().float()  # of equal weights it is all
    scale = torch.where(equal, 1.0, scale)
    codes = ((groups - zero.unsqueeze(-1)) / scale.unsqueeze(-1)).round_().add_(8).clamp_(0, 15)
    return codes.view(rows, length).int(), torch.stack((scale, zero), -1).transpose(0, 1).contiguous()


@lru_cache
@torch.inference_mode()
def can_compute(dtype: torch.dtype) -> bool:
    """Whether this torch computes with four-bit weights here, right and each row by itself."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(1120, 208, bias=False, dtype=dtype)
    layer.weight.copy_(torch.randn(208, 1120, generator=generator) / 32)
    x = torch.randn(70, 1120, generator=generator).to(dtype)
    codes, scales = four_bits(layer.weight)
    scale, zero = scales.transpose(0, 1).unbind(-1)
    exact = (codes.view(208, -1, GROUP) - 8) * scale.unsqueeze(-1) + zero.unsqueeze(-1)
    try:
        packed = FourBitLinear(layer)
        near = torch.allclose(packed(x).float(), x.float() @ exact.view(208, -1).T, rtol=2e-2, atol=2e-2)
        return near and rows_agree(lambda rows, _: packed(rows), x, x, 1)
    except (RuntimeError, AttributeError, NotImplementedError):  # another build of torch
        return False
