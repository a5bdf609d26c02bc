"""The dense part of a model under torch.compile, with the attention left outside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from frtool.models.tree_pass import ATTENTION_NAME, tree_attention_forward


class CompiledLayers:
    """Compiles the decoder layers of a model: norms, rotary embedding, projections and MLP, each around the attention,
    which the compiler does not look into. One compilation serves every batch size and every layer of a kind.

    Only passes inside `active` run compiled: prompts have too many lengths for it.
    """

    def __init__(self, model: Any, backend: str = "inductor") -> None:
        """Raises AttributeError for a model whose decoder has no list of layers."""
        from transformers.modeling_utils import AttentionInterface

        AttentionInterface.register(ATTENTION_NAME, torch.compiler.disable(tree_attention_forward))  # type: ignore[no-untyped-call]
        layers = list(model.get_decoder().layers)
        # Kinds of layers, attention windows and the batch of one each need a version of the same code.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
        self._layers = [(layer, torch.compile(layer.forward, dynamic=True, backend=backend)) for layer in layers]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within it the model's layers are the compiled ones."""
        for layer, compiled in self._layers:
            layer.forward = compiled
        try:
            yield
        finally:
            for layer, _ in self._layers:
                del layer.forward
