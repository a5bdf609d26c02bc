"""Reasoning search: the tree, the algorithms, the budget, the events. Pure Python; no torch, no I/O."""
