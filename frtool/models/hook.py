"""The tree attention, put where transformers models look for theirs. Importing this loads transformers."""

from __future__ import annotations

from transformers.modeling_utils import AttentionInterface

from .tree_pass import ATTENTION_NAME, TreeBatch, forward_tree, model_logits, tree_attention_forward

__all__ = ["ATTENTION_NAME", "TreeBatch", "forward_tree", "model_logits", "tree_attention_forward"]

AttentionInterface.register(ATTENTION_NAME, tree_attention_forward)
