"""One prompt and what judges its answer. Nothing here needs a model."""

from __future__ import annotations

from dataclasses import dataclass

from frtool.config import VERDICTS, SearchConfig
from frtool.errors import UsageError
from frtool.search.protocols import Task, Verifier
from frtool.tasks.arithmetic import ArithmeticTask, embedded_limit
from frtool.tasks.general import ExpressionTask, GeneralTask
from frtool.tasks.puzzle import Puzzle, parse_puzzle
from frtool.verify.arithmetic import ArithmeticVerifier

from .custom import Custom


@dataclass(frozen=True, slots=True)
class Problem:
    """`config` is resolved and holds the prompt; `judge` is the verifier whose verdict is the score, if one is."""

    config: SearchConfig
    task: Task
    verifier: Verifier | None
    judge: Verifier | None

    @classmethod
    def read(cls, config: SearchConfig, custom: Custom) -> Problem:
        """Raises UsageError for a prompt that is out of the model's reach or that its verifier cannot judge."""
        try:
            config.prompt.encode()
        except UnicodeEncodeError:
            raise UsageError("the prompt holds what is no character") from None
        puzzle = parse_puzzle(config.prompt)
        task = _task(config, puzzle) if custom.task is None else custom.task
        verifier = custom.verifier or _verifier(config, puzzle)
        judge = None
        if custom.scorer is None and config.scorer in VERDICTS:
            judge = _judge(config.scorer, config, puzzle, verifier)
        return cls(config, task, verifier, judge)


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
