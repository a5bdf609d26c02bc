"""Linear layers of a model on a CPU, with their weights laid out once for the matrix products of a decode step.

oneDNN reorders a weight matrix at every product, which for the few rows of a decode step costs as much as the product.
A packed weight is reordered once. The values are the same: in bfloat16 to the bit, in float32 up to the order of sums.
Every row of a product of 8 or more rows has the same bits whatever the others are; `_trusted` tries that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .memory import free_host_memory

_PACKABLE = (torch.float32, torch.bfloat16)


class PackedLinear(nn.Module):
    """`x @ weight.T + bias` for `[..., in]` x of the weight's dtype. Inference only; several weights become one."""

    def __init__(self, *layers: nn.Linear) -> None:
        """Takes the weights of `layers`, which read the same input; their outputs follow one another."""
        super().__init__()
        weight = layers[0].weight if len(layers) == 1 else torch.cat([layer.weight for layer in layers])
        self.out_features, self.in_features = weight.shape
        self.widths = [layer.out_features for layer in layers]
        biases = [layer.bias for layer in layers]
        self.bias = None
        if any(bias is not None for bias in biases):
            self.bias = torch.cat(
                [
                    weight.new_zeros(layer.out_features) if bias is None else bias.detach()
                    for layer, bias in zip(layers, biases, strict=True)
                ]
            )
        self._packed = _pack(weight.detach())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = _op()._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return out

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """`residual` + this layer of x, rounded once."""
        out: torch.Tensor = _op()._linear_pointwise.binary(x, residual, self._packed, self.bias, "add")
        return out


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this torch packs weights of `dtype` here, and computes with them what it computes without."""
    if device.type != "cpu" or dtype not in _PACKABLE:
        return False
    return bool(torch.backends.mkldnn.is_available()) and _trusted(dtype)  # type: ignore[no-untyped-call]


@torch.inference_mode()
def pack_model(model: Any) -> int:
    """Pack the linear layers of `model` in place and free the weights as they were. Returns how many were packed.

    Decoder layers that `packed_layers` knows are replaced as a whole. An output matrix that is the embedding too stays
    besides its packed copy; it is left as it is where such a copy would take much of the free memory.
    """
    from .packed_layers import pack_layers

    count = pack_layers(model)
    tables = {module.weight.data_ptr() for module in model.modules() if isinstance(module, nn.Embedding)}
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and child.weight.dtype in _PACKABLE:
                if child.weight.data_ptr() in tables and child.weight.nbytes > free_host_memory() // 8:
                    continue
                setattr(module, name, PackedLinear(child))
                count += 1
    return count


def _op() -> Any:
    return torch.ops.mkldnn


def _pack(weight: torch.Tensor) -> torch.Tensor:
    packed: torch.Tensor = _op()._reorder_linear_weight(weight, None)
    return packed


_results: dict[torch.dtype, bool] = {}


def _trusted(dtype: torch.dtype) -> bool:
    if dtype not in _results:
        try:
            _results[dtype] = _try(dtype)
        except (RuntimeError, AttributeError, NotImplementedError):  # another build of torch, another processor
            _results[dtype] = False
    return _results[dtype]


@torch.inference_mode()
def _try(dtype: torch.dtype) -> bool:
    """Products of a shape with remainders: right, and the same bits for a row in any company."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(72, 1100, generator=generator).to(dtype)
    linear = nn.Linear(1100, 200, bias=False).to(dtype)
    linear.weight.copy_(torch.randn(200, 1100, generator=generator) / 32)
    packed = PackedLinear(linear)
    whole = packed(x)
    right = torch.allclose(whole.float(), x.float() @ linear.weight.float().T, rtol=2e-2, atol=2e-2)
    added = packed.add_to(whole, x)
    return right and all(
        torch.equal(packed(x[first : first + rows].clone()), whole[first : first + rows])
        and torch.equal(
            packed.add_to(whole[first : first + rows], x[first : first + rows]), added[first : first + rows]
        )
        for rows in (8, 16, 40, 64)
        for first in (0, 5)
    )
