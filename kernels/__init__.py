"""Paged, reference-counted KV cache and tree-aware attention.

Kept free of torch and triton imports and of a version: transformers may import a top-level `kernels` package that it
finds on `sys.path` (this folder, in a source tree) to look for Hugging Face's package of that name.
"""
