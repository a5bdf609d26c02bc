"""What the searches of one configuration share: the algorithm's options, the model, the reward model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from frtool import __version__
from frtool.config import SearchConfig
from frtool.errors import UsageError
from frtool.scoring import LogprobScorer, StepRewardScorer, VerdictScorer
from frtool.scoring.preset import RewardPreset, find_preset
from frtool.search.registry import OptionError, make_algorithm, resolve_options
from frtool.tasks.arithmetic import ArithmeticTask
from frtool.threads import spin_briefly

from .custom import Custom
from .problem import Problem

if TYPE_CHECKING:
    from frtool.engine import EngineOptions, Forest, Root
    from frtool.models.load import LoadedModel
    from frtool.scoring.reward_pool import RewardPool
    from frtool.search.protocols import Algorithm, Scorer

Progress = Callable[[str], None]


class Equipment:
    """`config` is resolved, the algorithm's options too. `load` comes before everything that needs the model."""

    loaded: LoadedModel

    def __init__(self, config: SearchConfig, custom: Custom | None = None) -> None:
        """Raises UsageError for a configuration that cannot work."""
        self.custom = custom or Custom()
        self.custom.check(config)
        self.config = self.resolve(config)
        self._preset: RewardPreset | None = None
        if config.reward_model is not None:
            self._preset = find_preset(config.reward_preset, config.reward_model)
        self._reward_model: LoadedModel | None = None

    def resolve(self, config: SearchConfig) -> SearchConfig:
        """`config` with every default, those of the algorithm's options too. Raises UsageError."""
        config = config.resolved()
        if self.custom.algorithm is None:
            try:
                options = resolve_options(config.algorithm, config.algorithm_options, seed=config.seed)
                make_algorithm(config.algorithm, options)
            except OptionError as error:
                hint = "`frtool search --help` lists the algorithms and their options"
                raise UsageError(str(error), hint=hint) from None
            config = replace(config, algorithm_options=options)
        return self.custom.named(config)

    def load(self, progress: Progress, loaded: LoadedModel | None = None) -> None:
        """Load the model, unless it is given, and the reward model, where one is wanted. Raises ModelError."""
        config = self.config
        spin_briefly()
        progress("starting torch")
        self.loaded = loaded or load_policy(config, progress)
        if self._preset is not None:
            self._load_reward_model(self._preset, progress)

    def algorithm(self, config: SearchConfig) -> Algorithm:
        """A fresh one, for a search of this resolved configuration."""
        if self.custom.algorithm is not None:
            return self.custom.algorithm()
        return make_algorithm(config.algorithm, config.algorithm_options)

    def reward_pool(self) -> RewardPool | None:
        """A pool for the reward model's reading of many problems, where there is such a model."""
        if self._reward_model is None:
            return None
        from frtool.scoring.reward_pool import RewardPool

        return RewardPool(self._reward_model)

    def scorer(self, problem: Problem, pool: RewardPool | None = None) -> Scorer:
        """What judges the steps of a search. Raises UsageError for one that the model lacks.

        A reward model reads in `pool`, or in one of its own.
        """
        if self.custom.scorer is not None:
            return self.custom.scorer
        if problem.judge is not None:
            return VerdictScorer(problem.task, problem.judge)
        return self.model_scorer(problem.config.prompt, pool)

    def model_scorer(self, prompt: str, pool: RewardPool | None = None) -> Scorer:
        """`scorer`, where it is a model that judges."""
        config, loaded = self.config, self.loaded
        if self._preset is not None and self._reward_model is not None:
            from frtool.scoring.reward_model import RewardModelScorer

            return RewardModelScorer(
                self._reward_model,
                self._preset,
                prompt,
                expected_tokens=self.engine_options().expected_tokens,
                pool=pool,
            )
        if config.scorer == "self-eval":
            from frtool.scoring.self_eval import SelfEvalScorer

            return SelfEvalScorer(loaded)
        if self._takes_own_rewards():
            return StepRewardScorer()
        return LogprobScorer()

    def prompt_ids(self, problem: Problem) -> list[int]:
        from frtool.models.prompt import chat_prompt_ids, plain_prompt_ids

        if isinstance(problem.task, ArithmeticTask):
            return plain_prompt_ids(self.loaded, problem.task.prompt_text)
        return chat_prompt_ids(self.loaded, problem.config.prompt, self.config.system)

    def engine_options(self) -> EngineOptions:
        """Raises UsageError where the scorer wants rewards that the model cannot give."""
        from frtool.engine import EngineOptions

        return EngineOptions.from_config(self.config, self.algorithm(self.config), reads_rewards=self.reads_rewards)

    @property
    def reads_rewards(self) -> bool:
        """Whether a pass reads the model's own process reward too. Raises UsageError where it cannot."""
        custom = self.custom.scorer
        return self._takes_own_rewards() if custom is None else bool(getattr(custom, "reads_rewards", False))

    def model_record(self, problem: Problem, scorer: Scorer, passes: str) -> dict[str, Any]:
        """What the trace says of the model and of what it runs on. `passes`: how its forward passes run."""
        import torch

        from frtool.models.fingerprint import fingerprint

        loaded = self.loaded
        on_gpu = loaded.device.type == "cuda"
        record = {
            "name": loaded.name,
            "architecture": type(loaded.model).__name__,
            "parameters": loaded.parameters,
            "weights": fingerprint(loaded.source),
            "dtype": loaded.number_format,
            "device": torch.cuda.get_device_name(loaded.device) if on_gpu else "cpu",
            "attention": "triton" if on_gpu else "torch",
            "attention_why": "the Triton kernel, on a CUDA device" if on_gpu else "no CUDA device: its plan in torch",
            "passes": passes,
            "scorer": scorer.name,
            "verifier": None if problem.verifier is None else problem.verifier.name,
            "torch": torch.__version__,
            "capability": None if on_gpu else torch.backends.cpu.get_cpu_capability(),
            "frtool": __version__,
        }
        if self._preset is not None:
            record["preset"] = asdict(self._preset)
        return record

    def _takes_own_rewards(self) -> bool:
        """Whether the model's own process-reward tokens are the scorer."""
        config, loaded = self.config, self.loaded
        if config.scorer == "reward" and loaded.reward_tokens is None:
            raise UsageError(
                f"{loaded.name} has no process-reward tokens <prm>, <+> and <->", hint="use --scorer logprob"
            )
        return config.scorer in ("auto", "reward") and loaded.reward_tokens is not None

    def _load_reward_model(self, preset: RewardPreset, progress: Progress) -> None:
        from frtool.models.devices import set_threads
        from frtool.models.reward import load_reward_model

        config = self.config
        assert config.reward_model is not None
        self._reward_model = load_reward_model(
            config.reward_model,
            head_tensors=preset.head_tensors,
            classes=preset.classes,
            device=self.loaded.device,
            dtype=None if config.dtype in ("auto", "int4") else config.dtype,
            offline=config.offline,
            on_progress=progress,
        )
        # Loading set the threads for the reward model alone, and the two share them.
        set_threads(max(self.loaded.parameters, self._reward_model.parameters))


def attach(scorer: Scorer, root: Root) -> None:
    """Give a scorer the root whose branches it reads, or whose scorer tokens it adds to."""
    from frtool.scoring.reward_model import RewardModelScorer
    from frtool.scoring.self_eval import SelfEvalScorer

    def spend(tokens: int) -> None:
        root.scorer_tokens += tokens

    if isinstance(scorer, RewardModelScorer):
        scorer.spend = spend
    elif isinstance(scorer, SelfEvalScorer):
        scorer.attach(root)


def plant(
    forest: Forest, prompt_ids: list[int], scorer: Scorer, seed: int | None = None
) -> tuple[Root, Callable[[], None]]:
    """A root whose prompt the forest's next pass reads, with a scorer that knows it, and what frees all that both hold.

    Raises as `Root` does, and then the scorer holds nothing.
    """
    from frtool.engine import Root

    clear: Callable[[], None] = getattr(scorer, "clear", lambda: None)
    try:
        root = Root(forest, prompt_ids, seed, read_later=True)
    except BaseException:
        clear()
        raise
    attach(scorer, root)

    def free() -> None:
        clear()
        root.close()

    return root, free


def load_policy(config: SearchConfig, progress: Progress) -> LoadedModel:
    """The model that a configuration names. Raises ModelError."""
    from frtool.models.load import load_model

    return load_model(
        config.model,
        device=config.device,
        dtype=None if config.dtype == "auto" else config.dtype,
        offline=config.offline,
        trust_remote_code=config.trust_remote_code,
        on_progress=progress,
        light=True,
    )
