"""A caller's own objects in place of what a configuration names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from frtool.errors import UsageError

if TYPE_CHECKING:
    from frtool.config import SearchConfig
    from frtool.search.protocols import Algorithm, Scorer, Task, Verifier


@dataclass(frozen=True, slots=True)
class Custom:
    """None leaves the choice to the configuration. The protocols stand in `frtool.search.protocols`."""

    algorithm: Callable[[], Algorithm] | None = None
    """Makes a fresh one for each search."""
    scorer: Scorer | None = None
    verifier: Verifier | None = None
    task: Task | None = None

    def check(self, config: SearchConfig) -> None:
        """Raise UsageError where the configuration speaks of what an object of the caller's replaces."""
        if self.algorithm is not None and config.algorithm_options:
            raise UsageError("options are for an algorithm that is named", hint="set them on your own algorithm")
        if self.scorer is not None and (config.scorer != "auto" or config.reward_model is not None):
            raise UsageError("there are two scorers: yours, and one that is named")
        given = config.verify != "auto" or config.verify_command is not None or config.expected is not None
        if self.verifier is not None and given:
            raise UsageError("there are two verifiers: yours, and one that is named")

    def named(self, config: SearchConfig) -> SearchConfig:
        """The configuration with the names of the objects, for the trace: it cannot be run again without them."""
        changes = {}
        if self.algorithm is not None:
            changes["algorithm"] = self.algorithm().name
        if self.scorer is not None:
            changes["scorer"] = self.scorer.name
        if self.verifier is not None:
            changes["verify"] = self.verifier.name
        return replace(config, **changes)  # type: ignore[arg-type]
