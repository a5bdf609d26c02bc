"""What a search may spend."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from .options import OptionError


@dataclass(frozen=True, slots=True)
class Budget:
    """Upper limits; None is no limit. Raises OptionError for a limit that allows nothing."""

    tokens: int | None = None
    """Sampled by the policy and read by the scorer, together. A poll may pass it by one token a live row, and
    by those that a row was told to begin with."""
    nodes: int | None = None
    """Distinct nodes of the tree, the root not counted. Never passed."""
    seconds: float | None = None
    steps: int | None = None
    """Sampled steps, duplicates included. Never passed."""
    kv_bytes: int | None = None
    """KV that the tree holds at one time, in whole blocks. A poll may pass it by what the live rows take."""

    def __post_init__(self) -> None:
        for item in fields(self):
            limit = getattr(self, item.name)
            if limit is not None and not (limit > 0 and math.isfinite(limit)):
                raise OptionError(
                    f"a budget of {limit} {item.name} allows nothing; it must be above 0", option=item.name
                )

    @property
    def runs(self) -> bool:
        """Whether a limit can be reached between two finished steps."""
        return self.tokens is not None or self.seconds is not None or self.kv_bytes is not None

    def spent(self, *, tokens: int, nodes: int, seconds: float, steps: int = 0, kv_bytes: int = 0) -> str | None:
        """The name of the first limit that is reached, or None."""
        if self.tokens is not None and tokens >= self.tokens:
            return "tokens"
        if self.nodes is not None and nodes >= self.nodes:
            return "nodes"
        if self.steps is not None and steps >= self.steps:
            return "steps"
        if self.seconds is not None and seconds >= self.seconds:
            return "seconds"
        if self.kv_bytes is not None and kv_bytes >= self.kv_bytes:
            return "kv"
        return None

    def room(self, *, nodes: int, steps: int, under_way: int) -> int | None:
        """Steps that may still be asked for while `under_way` are, so that no count can be passed; None is any."""
        left = [limit - count for limit, count in ((self.nodes, nodes), (self.steps, steps)) if limit is not None]
        return max(min(left) - under_way, 0) if left else None
