"""Linear layers of a model on a CPU, with their weights laid out once for the matrix products of a decode step.

oneDNN reorders a weight matrix at every product, which for the few rows of a decode step costs as much as the product.
A packed weight is reordered once. The values are the same: in bfloat16 to the bit, in float32 up to the order of sums.
Every row of a product has the same bits whatever the others are, from a number of rows on that `least_rows` finds by
trial.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .memory import free_host_memory

_PACKABLE = (torch.float32, torch.bfloat16)
_NOTHING: tuple[str, list[Any], str] = ("none", [], "")
SILU: tuple[str, list[Any], str] = ("swish", [], "")
"""What a product may go through before it is rounded, as oneDNN calls it."""


class PackedLinear(nn.Module):
    """`x @ weight.T + bias` for `[..., in]` x of the weight's dtype. Inference only; several weights become one."""

    def __init__(
        self, *layers: nn.Linear, then: tuple[str, list[Any], str] = _NOTHING, order: torch.Tensor | None = None
    ) -> None:
        """Takes the weights of `layers`, which read the same input; their outputs follow one another, or come in the
        `order` int64 `[out]` of these."""
        super().__init__()
        self._then = then
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
        if order is not None:
            weight = weight[order]
            self.bias = None if self.bias is None else self.bias[order]
        self._packed = _pack(weight.detach())
        self._product, self._joined = _op()._linear_pointwise.default, _op()._linear_pointwise.binary

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self._product(x, self._packed, self.bias, *self._then)
        return out

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """`residual` + this layer of x, rounded once."""
        out: torch.Tensor = self._joined(x, residual, self._packed, self.bias, "add")
        return out

    def times(self, factor: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """`factor` * this layer of x, rounded once."""
        out: torch.Tensor = self._joined(x, factor, self._packed, self.bias, "mul")
        return out


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this torch packs weights of `dtype` here, and computes with them what it computes without."""
    return bool(least_rows(device, dtype))


def least_rows(device: torch.device, dtype: torch.dtype) -> int:
    """Rows that a product with packed weights of `dtype`, or with plain ones, needs, so that each has the same bits
    whatever the others are. 0 where nothing can be packed."""
    if device.type != "cpu" or dtype not in _PACKABLE:
        return 0
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return 0
    if dtype not in _results:
        try:
            _results[dtype] = _try(dtype)
        except (RuntimeError, AttributeError, NotImplementedError):  # another build of torch, another processor
            _results[dtype] = 0
    return _results[dtype]


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


_results: dict[torch.dtype, int] = {}


@torch.inference_mode()
def _try(dtype: torch.dtype) -> int:
    """Products of shapes with remainders and of long sums: 0 if they are wrong, else the fewest rows of which each has
    the same bits in any company."""
    generator = torch.Generator().manual_seed(0)
    least = 4
    for width, length in ((200, 1100), (96, 2048)):
        x, factor = (torch.randn(72, size, generator=generator).to(dtype) for size in (length, width))
        linear = nn.Linear(length, width, bias=False).to(dtype)
        linear.weight.copy_(torch.randn(width, length, generator=generator) / length**0.5)
        packed, active = PackedLinear(linear), PackedLinear(linear, then=SILU)
        whole = _products(linear, packed, active, x, factor)
        exact = x.float() @ linear.weight.float().T
        expected = (exact, exact, exact + factor, exact * factor, nn.functional.silu(exact))
        for got, truth in zip(whole, expected, strict=True):
            if not torch.allclose(got.float(), truth.float(), rtol=2e-2, atol=2e-2):
                return 0
        while not _alone(linear, packed, active, x, factor, least, whole):
            least *= 2
            if least > 8:
                return 0
    return least


def _products(
    linear: nn.Linear, packed: PackedLinear, active: PackedLinear, x: torch.Tensor, factor: torch.Tensor
) -> list[torch.Tensor]:
    return [linear(x), packed(x), packed.add_to(factor, x), packed.times(factor, x), active(x)]


def _alone(
    linear: nn.Linear,
    packed: PackedLinear,
    active: PackedLinear,
    x: torch.Tensor,
    factor: torch.Tensor,
    least: int,
    whole: list[torch.Tensor],
) -> bool:
    """Whether multiples of `least` rows each give what they give among all."""
    for rows in (least, 3 * least, 40):
        some = slice(5, 5 + rows)
        part = _products(linear, packed, active, x[some].clone(), factor[some].clone())
        if not all(torch.equal(a, b[some]) for a, b in zip(part, whole, strict=True)):
            return False
    return True
