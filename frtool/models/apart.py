"""Linear layers whose products take nothing else along: what follows them are operations of their own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from .packed import NOTHING, SILU, Then, joined

Product = Callable[[torch.Tensor], torch.Tensor]
"""Of x `[..., in]`; gives `[..., out]` of the same dtype, fresh."""
_SERIAL = 32767
"""Elements that torch's elementwise operations leave to one thread; of more, each thread's last ones may be computed in
another way."""
_LANES = 32
"""Elements that they compute alike at most; what is left of a multiple of it may be computed in another way, too."""


class ApartLinear(nn.Module):
    """As `packed.PackedLinear`, of weights kept in fewer bits than its inputs and outputs have.

    A subclass has `pack`, and `nbytes` of what a product reads.
    """

    rows = 1
    """Of a product at least, and a multiple of it, so that each has the same bits in any company."""
    nbytes: int

    def __init__(self, *layers: nn.Linear, then: Then = NOTHING, order: torch.Tensor | None = None) -> None:
        super().__init__()
        weight, self.bias = joined(layers, order)
        self.out_features, self.in_features = weight.shape
        self.widths = [layer.out_features for layer in layers]
        self._is_active = then is SILU
        self._product = self.pack(weight)

    @staticmethod
    def fits(*layers: nn.Linear) -> bool:
        """Whether these layers can be packed so, together or apart."""
        return True

    def pack(self, weight: torch.Tensor) -> Product:
        """The product with `weight` `[out, in]`, for x of its dtype."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self._product(x)
        if self.bias is not None:
            out = out.add_(self.bias)
        return _activated(out) if self._is_active else out

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """`residual` + this layer of x."""
        return self.forward(x).add_(residual)

    def times(self, factor: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """`factor` * this layer of x."""
        return self.forward(x).mul_(factor)


def _activated(x: torch.Tensor) -> torch.Tensor:
    """SiLU of `[..., out]`, in place where it can be; each row by itself."""
    width = x.shape[-1]
    if missing := -width % _LANES:
        return _activated(nn.functional.pad(x, (0, missing)))[..., :width].contiguous()
    if x.numel() <= _SERIAL:
        return nn.functional.silu(x, inplace=True)
    rows, step = x.view(-1, width), max(_SERIAL // width, 1)
    for first in range(0, len(rows), step):
        nn.functional.silu(rows[first : first + step], inplace=True)
    return x


def bytes_saved(model: nn.Module, itemsize: int) -> int:
    """Bytes by which such layers of `model` are smaller than those of `itemsize` bytes a weight."""
    layers = [module for module in model.modules() if isinstance(module, ApartLinear)]
    return sum(layer.in_features * layer.out_features * itemsize - layer.nbytes for layer in layers)
