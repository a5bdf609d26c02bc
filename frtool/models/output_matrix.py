"""The last matrix of a model, told where its product is to lie."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

Room = Callable[[int, int, torch.dtype], torch.Tensor | None]
"""Memory for logits `[rows, vocab]` of a number format, or None where there is none of this kind."""


class OutputMatrix:
    """The layer that makes logits of hidden states, where it is a plain one without bias; any other stays as it is."""

    def __init__(self, model: Any) -> None:
        self._head = _plain_head(model)
        self._wanted = threading.local()  # another thread may run the same model meanwhile

    @contextmanager
    def into(self, room: Room) -> Iterator[None]:
        """Within it, the first product of the matrix is written to what `room` gives, instead of fresh memory. Only the
        first: a model that makes several sets of logits still needs them all."""
        if self._head is None:
            yield
            return
        self._wanted.room = room
        self._head.forward = self._forward
        try:
            yield
        finally:
            self._wanted.room = None
            vars(self._head).pop("forward", None)

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        """x `[..., in]`. Returns `[..., vocab]`, to the bit what the layer itself gives."""
        weight: torch.Tensor = self._head.weight
        rows, vocab = x.numel() // x.shape[-1], len(weight)
        room: Room | None = getattr(self._wanted, "room", None)
        self._wanted.room = None
        out = None if room is None else room(rows, vocab, weight.dtype)
        if out is None:
            return torch.nn.functional.linear(x, weight)
        torch.mm(x.reshape(rows, -1), weight.t(), out=out)
        return out.view(*x.shape[:-1], vocab)


def _plain_head(model: Any) -> Any:
    try:
        head = model.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    # One that was given a forward of its own, as by accelerate's hooks, keeps it.
    plain = type(head) is torch.nn.Linear and head.bias is None and "forward" not in vars(head)
    return head if plain else None
