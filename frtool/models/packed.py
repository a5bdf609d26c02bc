"""Linear layers of a model on a CPU, with their weights laid out once for the matrix products of a decode step.

oneDNN reorders a weight matrix at every product, which for the few rows of a decode step costs as much as the product.
A packed weight is reordered once. The values are the same up to the order of sums. Every row of a product has the same
bits whatever the others are, from a number of rows on that `least_rows` finds by trial, and up to one that is found for
each shape where a processor needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import lcm
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .memory import free_host_memory
from .row_layout import ANY_ROWS, Product, RowLayout, layout_of, pack, rows_agree

if TYPE_CHECKING:
    from .load import LoadedModel

_PACKABLE = (torch.float32, torch.bfloat16)
Then = tuple[str, list[Any], str]
NOTHING: Then = ("none", [], "")
SILU: Then = ("swish", [], "")
"""What a product may go through before it is rounded, as oneDNN calls it."""


class PackedLinear(nn.Module):
    """`x @ weight.T + bias` for `[..., in]` x of the weight's dtype. Inference only; several weights become one."""

    def __init__(
        self,
        *layers: nn.Linear,
        then: Then = NOTHING,
        order: torch.Tensor | None = None,
        layout: RowLayout | None = None,
    ) -> None:
        """Takes the weights of `layers`, which read the same input; their outputs follow one another, or come in the
        `order` int64 `[out]` of these. `layout`: found by trial if None."""
        super().__init__()
        self._then = then
        weight, self.bias = joined(layers, order)
        self.out_features, self.in_features = weight.shape
        self.widths = [layer.out_features for layer in layers]
        if layout is None:
            trial = _trial(weight.dtype)
            layout = ANY_ROWS if trial.any_rows else layout_of(weight, trial.least)
        self._packed = pack(weight, layout)
        self._most = layout.most
        self._size = (1 << 62) if layout.most is None else layout.most * self.in_features
        op: Any = torch.ops.mkldnn._linear_pointwise
        self._product, self._joined = op.default, op.binary

    @staticmethod
    def fits(*layers: nn.Linear) -> bool:
        """Whether these layers can be packed so: any can."""
        return True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.numel() > self._size:
            return self._in_pieces(x, None, lambda part, _: self.forward(part))
        out: torch.Tensor = self._product(x, self._packed, self.bias, *self._then)
        return out

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """`residual` + this layer of x, rounded once."""
        return self._join(x, residual, "add")

    def times(self, factor: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """`factor` * this layer of x, rounded once."""
        return self._join(x, factor, "mul")

    def _join(self, x: torch.Tensor, term: torch.Tensor, how: str) -> torch.Tensor:
        if x.numel() > self._size:
            return self._in_pieces(x, term, lambda part, of_part: self._join(part, of_part, how))
        out: torch.Tensor = self._joined(x, term, self._packed, self.bias, how)
        return out

    def _in_pieces(
        self, x: torch.Tensor, term: torch.Tensor | None, run: Callable[[torch.Tensor, Any], torch.Tensor]
    ) -> torch.Tensor:
        assert self._most is not None
        rows, terms = x.reshape(-1, self.in_features), None if term is None else term.reshape(-1, self.out_features)
        pieces = []
        for first in range(0, len(rows), self._most):
            part = slice(first, first + self._most)
            pieces.append(run(rows[part], None if terms is None else terms[part]))
        return torch.cat(pieces).view(*x.shape[:-1], self.out_features)


def joined(layers: Sequence[nn.Linear], order: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight and bias (None: no layer has one) of layers that read the same input: their outputs follow one another, or
    come in the `order` int64 `[out]` of these."""
    weight = layers[0].weight if len(layers) == 1 else torch.cat([layer.weight for layer in layers])
    bias = None
    if any(layer.bias is not None for layer in layers):
        none = weight.new_zeros
        bias = torch.cat([none(n.out_features) if n.bias is None else n.bias.detach() for n in layers])
    if order is not None:
        weight, bias = weight[order], None if bias is None else bias[order]
    return weight.detach(), bias


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this torch packs weights of `dtype` here, and computes with them what it computes without."""
    return bool(least_rows(device, dtype))


def least_rows(device: torch.device, dtype: torch.dtype) -> int:
    """Rows that a product with packed weights of `dtype` needs, so that each has the same bits whatever the others are.
    0 where nothing can be packed."""
    return _trial(dtype).least if device.type == "cpu" else 0


def row_multiple(loaded: LoadedModel) -> int:
    """Rows that a pass of this model has a multiple of, so that each has the same bits whatever the others are; 0 where
    nothing is known."""
    from .apart import ApartLinear

    if loaded.four_bit and hasattr(loaded.model, "tree_logits"):  # all of its products take care of themselves
        return 1
    least = least_rows(loaded.device, loaded.dtype)
    layers = [m for m in loaded.model.modules() if isinstance(m, (nn.Linear, PackedLinear, ApartLinear))]
    return lcm(*(m.rows if isinstance(m, ApartLinear) else least for m in layers)) if layers else least


@torch.inference_mode()
def pack_model(model: Any, four_bit: bool = False, rounds: bool = False) -> int:
    """Pack the linear layers of `model` in place and free the weights as they were. Returns how many were packed.

    Weights of fp32 are kept in fp16 where that changes nothing, or they may be rounded (`rounds`), see `half_linear`.
    four_bit: all but the output matrix get weights of four bits where their shapes allow it. Decoder layers that
    `packed_layers` knows are replaced as a whole. An output matrix that is the embedding too stays besides its packed
    copy; it is left as it is where such a copy would take much of the free memory, or all of it where the rows of a
    plain product depend on each other.
    """
    from .apart import ApartLinear
    from .four_bit import FilledUp, FourBitLinear
    from .half_linear import linear_for
    from .packed_layers import pack_layers

    weights = [module.weight for module in model.modules() if type(module) is nn.Linear]
    plain = linear_for(weights, rounds)
    linear = FourBitLinear if four_bit else plain
    count = pack_layers(model, linear)
    head = model.get_output_embeddings() if four_bit else None
    tables = {module.weight.data_ptr() for module in model.modules() if isinstance(module, nn.Embedding)}
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is not nn.Linear or child.weight.dtype not in _PACKABLE:
                continue
            trial = _trial(child.weight.dtype)
            packed: nn.Module = child
            share = 8 if trial.plain else 1
            if child.weight.data_ptr() not in tables or child.weight.nbytes <= free_host_memory() // share:
                packed = linear(child) if child is not head and linear.fits(child) else plain(child)
                count += 1
            rows = packed.rows if isinstance(packed, ApartLinear) else trial.least
            setattr(module, name, FilledUp(packed, rows) if child is head else packed)
    return count


@dataclass(frozen=True, slots=True)
class _Trial:
    """What trials of products of one number format have shown."""

    least: int
    """Rows of a product at least; 0 where packed ones are wrong."""
    any_rows: bool = True
    """Whether any more will do."""
    plain: bool = True
    """Whether this holds for weights that are not packed, too."""


_results: dict[torch.dtype, _Trial] = {}


def _trial(dtype: torch.dtype) -> _Trial:
    if dtype not in _PACKABLE or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return _Trial(0)
    if dtype not in _results:
        try:
            _results[dtype] = _try(dtype)
        except (RuntimeError, AttributeError, NotImplementedError):  # another build of torch, another processor
            _results[dtype] = _Trial(0)
    return _results[dtype]


@torch.inference_mode()
def _try(dtype: torch.dtype) -> _Trial:
    """Products of shapes with remainders and of long sums."""
    generator = torch.Generator().manual_seed(0)
    cases = []
    for width, length in ((200, 1100), (96, 2048)):
        x, term = (torch.randn(144, size, generator=generator).to(dtype) for size in (length, width))
        linear = nn.Linear(length, width, bias=False).to(dtype)
        linear.weight.copy_(torch.randn(width, length, generator=generator) / length**0.5)
        cases.append((linear, x, term))
    for any_rows in (True, False):
        for least in (4, 8):
            if all(_holds(*case, least, ANY_ROWS if any_rows else None) for case in cases):
                plain = all(rows_agree(_plain(linear), x, term, least) for linear, x, term in cases)
                return _Trial(least, any_rows, plain)
    return _Trial(0)


def _plain(linear: nn.Linear) -> Product:
    return lambda x, _: linear(x)


def _holds(linear: nn.Linear, x: torch.Tensor, term: torch.Tensor, least: int, layout: RowLayout | None) -> bool:
    """Whether packed products are right, and every row has the same bits among any multiple of `least` rows."""
    layout = layout or layout_of(linear.weight, least)
    packed, active = PackedLinear(linear, layout=layout), PackedLinear(linear, then=SILU, layout=layout)
    exact = x.float() @ linear.weight.float().T
    products: tuple[tuple[Product, torch.Tensor], ...] = (
        (lambda x, _: packed(x), exact),
        (lambda x, term: packed.add_to(term, x), exact + term),
        (lambda x, term: packed.times(term, x), exact * term),
        (lambda x, _: active(x), nn.functional.silu(exact)),
    )
    return all(
        torch.allclose(product(x, term).float(), truth.float(), rtol=2e-2, atol=2e-2)
        and rows_agree(product, x, term, least)
        for product, truth in products
    )
