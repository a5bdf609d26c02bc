"""What decides how an engine samples and what it may use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from frtool.config import SearchConfig
    from frtool.search.protocols import Algorithm

GPU_BLOCK = 16
CPU_BLOCK = 4


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Sampling, limits and memory of one engine. Raises ValueError for a value that cannot work."""

    seed: int = 0
    batch: int = 16
    """Rows of the decode batch: steps that grow at the same time. Never changes a sample."""
    temperature: float = 1.0
    """0 takes the most probable token, like `greedy`."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps the whole vocabulary."""
    min_p: float = 0.0
    greedy: bool = False
    max_step_tokens: int = 256
    max_path_tokens: int | None = None
    """Tokens of a whole path without the prompt. None: as many as the model's positions allow."""
    delimiter: str = "\n\n"
    num_blocks: int | None = None
    """Blocks of the KV pool; takes precedence over `kv_memory`."""
    kv_memory: int | None = None
    """Bytes of the KV pool. None takes a share of the memory that is free."""
    expected_tokens: int | None = None
    """Tokens that the search may come to hold, block rounding included: without `kv_memory` the pool grows no larger
    than the prompt and these. A search that needs more loses no more than time, because idle nodes are evicted."""
    block_size: int | None = None
    """Tokens of a KV block. None: 16 on a GPU; 4 elsewhere, where small blocks cost no time and forks copy less."""
    swap_space: int | None = None
    """Bytes of host memory for the KV of evicted nodes; 0 recomputes it. None: see `swap.HostMemory`."""
    prefill_chunk: int = 512
    """Prompt tokens in one forward pass."""
    read_rewards: bool = False
    """Read the model's process-reward token after every step."""
    pipeline: bool | None = None
    """Keep sampled tokens on the device and start each pass before the last is read. None: on a GPU."""
    capture: bool = True
    """Record the passes of a pipeline as CUDA graphs, where there is a GPU."""
    compile: bool = False
    """Compile the dense part of a pipeline's passes."""

    def __post_init__(self) -> None:
        for name in (
            "batch",
            "max_step_tokens",
            "prefill_chunk",
            "block_size",
            "max_path_tokens",
            "num_blocks",
            "kv_memory",
            "expected_tokens",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.swap_space is not None and self.swap_space < 0:
            raise ValueError(f"swap_space must not be negative, not {self.swap_space}")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be finite and not negative, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be more than 0 and at most 1, not {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must not be negative, not {self.top_k}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must lie in 0 to 1, not {self.min_p}")
        if not self.delimiter:
            raise ValueError("delimiter must not be empty")

    @classmethod
    def from_config(cls, config: SearchConfig, algorithm: Algorithm, *, reads_rewards: bool) -> EngineOptions:
        """The options that a resolved configuration asks for."""
        assert config.batch is not None
        assert config.temperature is not None
        assert config.max_step_tokens is not None
        assert config.max_depth is not None
        assert config.delimiter is not None
        return cls(
            seed=config.seed,
            batch=config.batch,
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            min_p=config.min_p,
            greedy=algorithm.greedy,
            max_step_tokens=config.max_step_tokens,
            max_path_tokens=config.max_step_tokens * config.max_depth,
            delimiter=config.delimiter,
            kv_memory=config.kv_memory,
            expected_tokens=_expected_tokens(config),
            block_size=config.block_size,
            swap_space=config.swap_space,
            read_rewards=reads_rewards,
            compile=config.compile,
        )


def _expected_tokens(config: SearchConfig) -> int | None:
    """What the budget lets a search hold: steps take whole blocks, and each one copies a block of its parent's."""
    assert config.batch is not None
    assert config.max_step_tokens is not None
    step = config.max_step_tokens + 2 * (config.block_size or GPU_BLOCK)
    limits = []
    # A node that is a copy of another was dropped, so `nodes` bounds the kept steps like `steps` does.
    limits += [count * step for count in (config.nodes, config.steps) if count is not None]
    if config.tokens is not None:
        limits.append(4 * config.tokens)
    return min(limits) + config.batch * step if limits else None
