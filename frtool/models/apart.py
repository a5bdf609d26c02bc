"""Linear layers whose products take nothing else along: what follows them are operations of their own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from .packed import NOTHING, SILU, Then, joined

Product = Callable[[torch.Tensor], torch.Tensor]
"""Of rows `[n, in]`; gives `[n, out]` of the same dtype, fresh."""
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
        """The product with `weight` `[out, in]`, for rows of its dtype."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self._product(x.reshape(-1, self.in_features))
        if self.bias is not None:
            rows = rows.add_(self.bias)
        if self._is_active:
            rows = _activated(rows)
        return rows.view(*x.shape[:-1], self.out_features)

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """`residual` + this layer of x."""
        return self.forward(x).add_(residual)

    def times(self, factor: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """`factor` * this layer of x."""
        return self.forward(x).mul_(factor)


def _activated(rows: torch.Tensor) -> torch.Tensor:
    """SiLU of `[n, out]`, in place where it can be; each row by itself."""
    width = rows.shape[1]
    if missing := -width % _LANES:
        return _activated(nn.functional.pad(rows, (0, missing)))[:, :width].contiguous()
    step = max(_SERIAL // width, 1)
    for first in range(0, len(rows), step):
        nn.functional.silu(rows[first : first + step], inplace=True)
    return rows


def bytes_saved(model: nn.Module, itemsize: int) -> int:
    """Bytes by which such layers of `model` are smaller than those of `itemsize` bytes a weight."""
    layers = [module for module in model.modules() if isinstance(module, ApartLinear)]
    return sum(layer.in_features * layer.out_features * itemsize - layer.nbytes for layer in layers)
