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

from .packed import NOTHING, SILU, Then, joined
from .row_layout import rows_agree

GROUP = 32
_OUTPUTS = 16
"""torch packs as many outputs at once."""
_SERIAL = 32767
"""Elements that torch's elementwise operations leave to one thread; of more, each thread's last ones may be computed in
another way."""


class FourBitLinear(nn.Module):
    """As `packed.PackedLinear`, of weights `[out, in]`, out a multiple of 16 and in of 32, rounded to four bits."""

    def __init__(self, *layers: nn.Linear, then: Then = NOTHING, order: torch.Tensor | None = None) -> None:
        super().__init__()
        weight, self.bias = joined(layers, order)
        self.out_features, self.in_features = weight.shape
        self.widths = [layer.out_features for layer in layers]
        self._is_active = then is SILU
        codes, scales = four_bits(weight)
        op: Any = torch.ops.aten
        self._packed = op._convert_weight_to_int4pack_for_cpu(codes, 1)
        self._scales = scales.bfloat16()
        self._product = op._weight_int4pack_mm_for_cpu

    @staticmethod
    def fits(*layers: nn.Linear) -> bool:
        """Whether these layers, together or apart, can have four-bit weights."""
        return all(layer.in_features % GROUP == 0 and layer.out_features % _OUTPUTS == 0 for layer in layers)

    @property
    def nbytes(self) -> int:
        """Of the weights, as a product reads them."""
        return int(self._packed.nbytes + self._scales.nbytes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        factors = x.reshape(-1, self.in_features).bfloat16().contiguous()
        rows = self._product(factors, self._packed, GROUP, self._scales).to(x.dtype)
        if self.bias is not None:
            rows = rows.add_(self.bias)
        if self._is_active:
            step = max(_SERIAL // self.out_features, 1)
            for first in range(0, len(rows), step):
                nn.functional.silu(rows[first : first + step], inplace=True)
        out: torch.Tensor = rows.view(*x.shape[:-1], self.out_features)
        return out

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """`residual` + this layer of x."""
        return self.forward(x).add_(residual)

    def times(self, factor: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """`factor` * this layer of x."""
        return self.forward(x).mul_(factor)


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


def weights_saved(model: nn.Module, itemsize: int) -> int:
    """Bytes by which four-bit layers of `model` are smaller than such of `itemsize` bytes a weight."""
    layers = [module for module in model.modules() if isinstance(module, FourBitLinear)]
    return sum(layer.in_features * layer.out_features * itemsize - layer.nbytes for layer in layers)


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
