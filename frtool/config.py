"""The configuration of one search, checked before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from frtool.errors import UsageError
from frtool.models import EMBEDDED
from frtool.search.budget import Budget
from frtool.tasks.puzzle import parse_puzzle

VERDICTS = ("arithmetic", "math", "command")
SCORERS = ("auto", "reward", "logprob", "self-eval", "prm", *VERDICTS)
VERIFIERS = ("auto", "none", *VERDICTS)
# The beam of the embedded model. Ten paths do well on held-out puzzles (benchmarks/embedded-accuracy.json); fewer stay
# where their steps would not all fit into the budget, because a beam that is cut has no answer.
_MOST_BEAMS = 10
_BEAM = {"expand": 4, "oversample": 1.3}
_MOST_LINES = 5
_BUDGETS = ("tokens", "nodes", "steps", "seconds", "kv_bytes")
_COUNTS = ("tokens", "nodes", "steps", "kv_bytes", "max_step_tokens", "max_depth", "batch", "block_size", "kv_memory")
DTYPES = ("auto", "float32", "bfloat16", "float16", "int4")

# What a step, a path and a search may cost when the user does not say. The embedded model's steps are one line of
# arithmetic; a chat model's are paragraphs.
_DEFAULTS: dict[bool, dict[str, Any]] = {
    True: {"delimiter": "\n", "max_step_tokens": 48, "max_depth": 8, "steps": 192, "temperature": 1.0},
    False: {"delimiter": "\n\n", "max_step_tokens": 256, "max_depth": 32, "tokens": 4096, "temperature": 0.8},
}
_BATCH = 16


@dataclass(frozen=True, slots=True)
class SearchConfig:
    """Everything that decides a search. None means: the default for this kind of model, set by `resolved`."""

    prompt: str
    model: str = EMBEDDED
    algorithm: str = "beam"
    algorithm_options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    tokens: int | None = None
    """Budget: tokens sampled by the policy and spent by the scorer."""
    nodes: int | None = None
    """Budget: distinct nodes."""
    steps: int | None = None
    """Budget: steps generated, duplicates counted."""
    seconds: float | None = None
    kv_bytes: int | None = None
    """Budget: KV that the tree holds at one time."""
    temperature: float | None = None
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps the whole vocabulary."""
    min_p: float = 0.0
    scorer: str = "auto"
    reward_model: str | None = None
    reward_preset: str | None = None
    """A built-in preset or a TOML file; None goes by the reward model's name."""
    verify: str = "auto"
    verify_command: str | None = None
    verify_seconds: float = 10.0
    expected: str | None = None
    """The right answer, for `verify` "math"."""
    steer: bool = False
    """Let the verifier stop and guide the search; otherwise it only grades the answer."""
    batch: int | None = None
    """Rows of the decode batch."""
    max_step_tokens: int | None = None
    max_depth: int | None = None
    delimiter: str | None = None
    system: str | None = None
    device: str | None = None
    dtype: str = "auto"
    kv_memory: int | None = None
    """Bytes for the KV pool; None takes a share of the memory that is free."""
    block_size: int | None = None
    """Tokens of a KV block; None leaves it to the engine."""
    swap_space: int | None = None
    """Bytes of host memory for KV that leaves the pool; None leaves it to the engine, 0 keeps none."""
    compile: bool = False
    """Compile the dense part of the model, on a GPU."""
    offline: bool = False
    trust_remote_code: bool = False

    @property
    def is_embedded(self) -> bool:
        return self.model == EMBEDDED

    def resolved(self) -> SearchConfig:
        """This configuration with every default filled in. Raises UsageError where it cannot work."""
        self._check()
        if not self.prompt.strip():
            raise UsageError("the prompt is empty", hint='pass a question: frtool search "Make 24 from 4, 5, 6, 10"')
        defaults = {**_DEFAULTS[self.is_embedded], "batch": _BATCH}
        budgeted = any(getattr(self, name) is not None for name in _BUDGETS)
        changes = {k: v for k, v in defaults.items() if getattr(self, k) is None and not (budgeted and k in _BUDGETS)}
        if self.scorer == "auto" and self.reward_model is not None:
            changes["scorer"] = "prm"
        if self.verify == "auto" and (self.verify_command is not None or self.expected is not None):
            changes["verify"] = "math" if self.verify_command is None else "command"
        if self.is_embedded and self.algorithm == "beam" and not self.algorithm_options:
            changes["algorithm_options"] = _fitted_beam(self.prompt, changes.get("steps", self.steps))
        return replace(self, **changes)

    def record(self) -> dict[str, Any]:
        """The configuration as JSON values, for the trace."""
        return asdict(self)

    def budget(self) -> Budget:
        return Budget(**{name: getattr(self, name) for name in _BUDGETS})

    def _check(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{_flag(name)} is {value}, but must be at least 1")
        if self.seconds is not None and not 0 < self.seconds < math.inf:
            raise UsageError(f"--seconds is {self.seconds:g}, but must be more than 0 and finite")
        if self.temperature is not None and not 0 <= self.temperature <= 100:
            raise UsageError(f"--temperature is {self.temperature:g}, but must lie in 0 to 100")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"--top-p is {self.top_p:g}, but must be more than 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise UsageError(f"--min-p is {self.min_p:g}, but must lie in 0 to 1")
        if self.top_k < 0:
            raise UsageError(f"--top-k is {self.top_k}, but must be 0 (all tokens) or more")
        if self.swap_space is not None and self.swap_space < 0:
            raise UsageError(f"--swap-space is {self.swap_space}, but must be 0 (none) or more")
        if not -(2**63) <= self.seed < 2**63:
            raise UsageError(f"--seed is {self.seed}, but must fit into 64 bits")
        if self.delimiter == "":
            raise UsageError("--delimiter is empty", hint=r"the default is a blank line; for lines pass '\n'")
        for name, allowed in (("scorer", SCORERS), ("verify", VERIFIERS), ("dtype", DTYPES)):
            if getattr(self, name) not in allowed:
                raise UsageError(
                    f"{_flag(name)} `{getattr(self, name)}` is unknown", hint=f"choose from {', '.join(allowed)}"
                )
        if self.steer and self.verify == "none":
            raise UsageError("--steer needs a verifier, but --verify is none")
        self._check_judges()

    def _check_judges(self) -> None:
        if self.scorer == "prm" and self.reward_model is None:
            raise UsageError(
                "--scorer prm needs a reward model", hint="pass --reward-model DIRECTORY or a Hugging Face id"
            )
        if self.reward_model is not None and self.scorer not in ("auto", "prm"):
            raise UsageError(f"--reward-model has no use with --scorer {self.scorer}", hint="leave one of them out")
        if self.reward_preset is not None and self.reward_model is None:
            raise UsageError("--reward-preset needs --reward-model")
        if not 0 < self.verify_seconds < math.inf:
            raise UsageError(f"--verify-seconds is {self.verify_seconds:g}, but must be more than 0 and finite")
        chosen = {self.verify, self.scorer}
        for kind, name, example in (
            ("command", "verify_command", "--verify-command 'python check.py'"),
            ("math", "expected", "--expected 42"),
        ):
            given = getattr(self, name) is not None
            if kind in chosen and not given:
                flag = "--verify" if self.verify == kind else "--scorer"
                raise UsageError(f"{flag} {kind} needs {_flag(name)}", hint=f"for example {example}")
            if given and kind not in chosen and self.verify != "auto":
                raise UsageError(f"{_flag(name)} has no use with --verify {self.verify}", hint="leave one of them out")
        if self.verify == "auto" and self.verify_command is not None and self.expected is not None:
            raise UsageError("--verify-command and --expected ask for two verifiers", hint="choose one with --verify")


def _fitted_beam(prompt: str, steps: int | None) -> dict[str, Any]:
    """The options of a beam that comes to its end within `steps`, even if it samples as often as it may."""
    expand, oversample = _BEAM["expand"], _BEAM["oversample"]
    keep = _MOST_BEAMS
    if steps is not None:
        puzzle = parse_puzzle(prompt)
        lines = _MOST_LINES if puzzle is None else len(puzzle.numbers) - 1
        keep = max(min(steps // (lines * math.ceil(expand * oversample)), _MOST_BEAMS), 1)
    return {"width": int(expand * keep), "keep": keep, "oversample": oversample}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
