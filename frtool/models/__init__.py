"""Models: what a name means, whether it can be searched, and loading it with the tree attention in place."""

EMBEDDED = "embedded"
"""The model that comes with the package."""
