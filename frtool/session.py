"""One search from a configuration to its last event: task, model, engine, algorithm and judges, wired together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from frtool.config import VERDICTS, SearchConfig
from frtool.errors import UsageError
from frtool.scoring import LogprobScorer, StepRewardScorer, VerdictScorer
from frtool.scoring.preset import RewardPreset, find_preset
from frtool.search.registry import OptionError, make_algorithm, resolve_options
from frtool.tasks.arithmetic import ArithmeticTask, embedded_limit
from frtool.tasks.general import ExpressionTask, GeneralTask
from frtool.tasks.puzzle import Puzzle, parse_puzzle
from frtool.threads import spin_briefly
from frtool.verify.arithmetic import ArithmeticVerifier

if TYPE_CHECKING:
    from frtool.engine import Engine
    from frtool.models.load import LoadedModel
    from frtool.search.events import Event
    from frtool.search.protocols import Algorithm, Scorer, Task, Verifier

Progress = Callable[[str], None]


class Session:
    """A search that is ready to run: `open` it, iterate `run` once, `interrupt` it from anywhere."""

    def __init__(
        self,
        config: SearchConfig,
        *,
        loaded: LoadedModel,
        engine: Engine,
        algorithm: Algorithm,
        scorer: Scorer,
        task: Task,
        verifier: Verifier | None,
        preset: RewardPreset | None = None,
    ) -> None:
        self.config = config
        self.loaded = loaded
        self.engine = engine
        self.algorithm = algorithm
        self.scorer = scorer
        self.task = task
        self.verifier = verifier
        self._preset = preset
        self._interrupted = threading.Event()

    @classmethod
    def open(cls, config: SearchConfig, on_progress: Progress | None = None) -> Session:
        """Check the call, load the model, read the prompt. `on_progress` gets one short line for each stage.

        Raises UsageError for a call that cannot work, before the model loads wherever that can be known, and
        ModelError for a model that cannot.
        """
        progress: Progress = on_progress or (lambda _: None)
        config = config.resolved()
        try:
            options = resolve_options(config.algorithm, config.algorithm_options, seed=config.seed)
            algorithm = make_algorithm(config.algorithm, options)
        except OptionError as error:
            raise UsageError(str(error), hint="`frtool search --help` lists the algorithms and their options") from None
        config = replace(config, algorithm_options=options)
        puzzle = parse_puzzle(config.prompt)
        task = _task(config, puzzle)
        verifier = _verifier(config, puzzle)
        judge = _judge(config.scorer, config, puzzle, verifier) if config.scorer in VERDICTS else None
        preset = _preset(config)

        spin_briefly()
        progress("starting torch")
        from frtool.engine import Engine, EngineOptions
        from frtool.models.load import load_model
        from frtool.models.prompt import chat_prompt_ids, plain_prompt_ids

        loaded = load_model(
            config.model,
            device=config.device,
            dtype=None if config.dtype == "auto" else config.dtype,
            offline=config.offline,
            trust_remote_code=config.trust_remote_code,
            on_progress=progress,
        )
        scorer: Scorer
        if judge is not None:
            scorer = VerdictScorer(task, judge)
        elif preset is not None:
            scorer = _reward_model(config, preset, loaded, algorithm, progress)
        else:
            scorer = _scorer(config, loaded)
        if isinstance(task, ArithmeticTask):
            prompt_ids = plain_prompt_ids(loaded, task.prompt_text)
        else:
            prompt_ids = chat_prompt_ids(loaded, config.prompt, config.system)
        progress(f"reading the prompt ({len(prompt_ids):,} tokens)")
        engine_options = EngineOptions.from_config(config, algorithm, reads_rewards=scorer.name == "reward")
        engine = Engine(loaded, prompt_ids, engine_options)
        _attach(scorer, engine)
        return cls(
            config,
            loaded=loaded,
            engine=engine,
            algorithm=algorithm,
            scorer=scorer,
            task=task,
            verifier=verifier,
            preset=preset,
        )

    def run(self) -> Iterator[Event]:
        """All events of the search, `RunStarted` first and `Ended` last."""
        from frtool.search.budget import Budget
        from frtool.search.run import run_search

        config = self.config
        assert config.max_depth is not None
        return run_search(
            algorithm=self.algorithm,
            generator=self.engine,
            scorer=self.scorer,
            task=self.task,
            verifier=self.verifier,
            budget=Budget(tokens=config.tokens, nodes=config.nodes, steps=config.steps, seconds=config.seconds),
            steer=config.steer,
            max_depth=config.max_depth,
            interrupted=self._interrupted.is_set,
            config=config.record(),
            model=self.model_record(),
            prompt=config.prompt,
        )

    def interrupt(self) -> None:
        """End the search at its next step, with the best answer so far. Safe from a signal handler."""
        self._interrupted.set()

    def model_record(self) -> dict[str, Any]:
        """What the trace says of the model and of what it runs on."""
        import torch

        loaded = self.loaded
        on_gpu = loaded.device.type == "cuda"
        record = {
            "name": loaded.name,
            "architecture": type(loaded.model).__name__,
            "parameters": loaded.parameters,
            "dtype": str(loaded.dtype).removeprefix("torch."),
            "device": torch.cuda.get_device_name(loaded.device) if on_gpu else "cpu",
            "attention": "triton" if on_gpu else "torch",
            "attention_why": "the Triton kernel, on a CUDA device" if on_gpu else "no CUDA device: its plan in torch",
            "scorer": self.scorer.name,
            "verifier": None if self.verifier is None else self.verifier.name,
            "torch": torch.__version__,
        }
        if self._preset is not None:
            record["preset"] = asdict(self._preset)
        return record


def _task(config: SearchConfig, puzzle: Puzzle | None) -> Task:
    if not config.is_embedded:
        return GeneralTask() if puzzle is None else ExpressionTask(puzzle)
    if puzzle is None:
        raise UsageError(
            "the embedded model solves arithmetic puzzles only, such as `Make 24 from 4, 5, 6, 10`",
            hint="for any other question pass a model: --model DIRECTORY, FILE.gguf or a Hugging Face id",
        )
    limit = embedded_limit(puzzle)
    if limit is not None:
        raise UsageError(limit, hint="pass a model for it: --model DIRECTORY, FILE.gguf or a Hugging Face id")
    return ArithmeticTask(puzzle)


def _verifier(config: SearchConfig, puzzle: Puzzle | None) -> Verifier | None:
    """What grades the answers."""
    if config.verify == "none":
        return None
    if config.verify in ("math", "command"):
        return _judge(config.verify, config, puzzle)
    if puzzle is not None or config.verify == "arithmetic" or config.steer:
        return _judge("arithmetic", config, puzzle)
    return None


def _judge(kind: str, config: SearchConfig, puzzle: Puzzle | None, known: Verifier | None = None) -> Verifier:
    """The verifier of this kind: `known` where it is one."""
    if known is not None and known.name == kind:
        return known
    if kind == "command":
        from frtool.verify.command import CommandVerifier

        assert config.verify_command is not None
        return CommandVerifier(config.verify_command, seconds=config.verify_seconds)
    if kind == "math":
        from frtool.verify.math import MathVerifier

        assert config.expected is not None
        return MathVerifier(config.expected)
    if puzzle is None:
        raise UsageError(
            "the arithmetic verifier needs an arithmetic puzzle, and the prompt is none",
            hint="write it like `Make 24 from 4, 5, 6, 10`, or leave --verify, --steer and --scorer alone",
        )
    return ArithmeticVerifier(puzzle)


def _scorer(config: SearchConfig, loaded: LoadedModel) -> Scorer:
    if config.scorer == "reward" and loaded.reward_tokens is None:
        raise UsageError(f"{loaded.name} has no process-reward tokens <prm>, <+> and <->", hint="use --scorer logprob")
    if config.scorer == "self-eval":
        from frtool.scoring.self_eval import SelfEvalScorer

        return SelfEvalScorer(loaded)
    if config.scorer == "logprob" or loaded.reward_tokens is None:
        return LogprobScorer()
    return StepRewardScorer()


def _preset(config: SearchConfig) -> RewardPreset | None:
    """How the reward model is read; None where none is wanted."""
    return None if config.reward_model is None else find_preset(config.reward_preset, config.reward_model)


def _reward_model(
    config: SearchConfig, preset: RewardPreset, policy: LoadedModel, algorithm: Algorithm, progress: Progress
) -> Scorer:
    from frtool.engine import EngineOptions
    from frtool.models.devices import set_threads
    from frtool.models.reward import load_reward_model
    from frtool.scoring.reward_model import RewardModelScorer

    assert config.reward_model is not None
    loaded = load_reward_model(
        config.reward_model,
        head_tensors=preset.head_tensors,
        classes=preset.classes,
        device=policy.device,
        dtype=None if config.dtype == "auto" else config.dtype,
        offline=config.offline,
        on_progress=progress,
    )
    # Loading set the threads for the reward model alone, and the two share them.
    set_threads(max(policy.parameters, loaded.parameters))
    options = EngineOptions.from_config(config, algorithm, reads_rewards=False)
    return RewardModelScorer(loaded, preset, config.prompt, expected_tokens=options.expected_tokens)


def _attach(scorer: Scorer, engine: Engine) -> None:
    """Give a scorer the engine whose branches it reads, or whose scorer tokens it adds to."""
    from frtool.scoring.reward_model import RewardModelScorer
    from frtool.scoring.self_eval import SelfEvalScorer

    def spend(tokens: int) -> None:
        engine.scorer_tokens += tokens

    if isinstance(scorer, RewardModelScorer):
        scorer.spend = spend
    elif isinstance(scorer, SelfEvalScorer):
        scorer.attach(engine)
