"""One model and one tree."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from frtool.search.protocols import Step

from .forest import Forest
from .options import EngineOptions
from .prefill import check_prompt
from .root import Root

if TYPE_CHECKING:
    from frtool.models.load import LoadedModel


class Engine(Root):
    """A root with a forest of its own: implements `search.protocols.Generator` over a loaded model.

    After an exception from `poll` only `cancel`, `keep`, `drop`, `release` and `kv` work.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        prompt_ids: list[int],
        options: EngineOptions,
        *,
        on_prefill: Callable[[int], None] | None = None,
    ) -> None:
        """Allocate the pool and read the prompt; `on_prefill` is told how many of its tokens are read.

        Raises UsageError, with the numbers and before anything is allocated, for a prompt that is empty or longer than
        the model or the pool, and for rewards from a model without reward tokens; FrtoolError for NaN logits.
        """
        check_prompt(loaded, len(prompt_ids), loaded.max_positions - int(options.read_rewards))
        forest = Forest(loaded, options, len(prompt_ids))
        forest.on_prefill = on_prefill
        super().__init__(forest, prompt_ids)
        self.options = options
        self.allocator = self.forest.allocator

    def poll(self) -> list[Step]:
        """Read what the last forward pass gave and start the next one: each growing step gains a token.

        Raises OutOfMemory when not even one step fits after everything idle was evicted (more polls may succeed after
        a `release`), FrtoolError for NaN logits.
        """
        self.forest.poll()
        return super().poll()
