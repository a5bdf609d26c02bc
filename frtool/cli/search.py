"""`frtool search`: one prompt in, one searched answer out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from frtool.errors import UsageError
from frtool.models import EMBEDDED

from .model_options import (
    ENGINE_PANEL,
    JUDGING_PANEL,
    CompileOption,
    DelimiterOption,
    DeviceOption,
    DtypeOption,
    KvMemoryOption,
    MaxDepthOption,
    MaxStepTokensOption,
    MinPOption,
    ModelOption,
    OfflineOption,
    RewardModelOption,
    RewardPresetOption,
    SwapSpaceOption,
    SystemOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    TrustOption,
)
from .settings import ConfigOption
from .values import algorithm_options, read_prompt, size, unescape

_ALGORITHM, _BUDGET = "Algorithm", "Budget"
_OUTPUT = "Output"


class SearchCommand(typer.core.TyperCommand):
    """Reads the table of algorithms only when the help is asked for."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.epilog = _algorithms()
        super().format_help(ctx, formatter)


def _algorithms() -> str:
    from frtool.search.registry import ALGORITHMS

    lines = ["Options of the algorithms, given as `-o name=value`:"]
    for name, options in ALGORITHMS.items():
        known = ", ".join(f"{o.name}={'auto' if o.default is None else o.default}" for o in options.values())
        lines.append(f"{name}: {known or 'none'}")
    return "\n\n".join(lines)


def search(
    prompt: Annotated[str | None, typer.Argument(help="The question. `-`, or nothing in a pipe, reads stdin.")] = None,
    prompt_file: Annotated[
        Path | None, typer.Option("--prompt-file", metavar="FILE", help="Read the question from there; `-` is stdin.")
    ] = None,
    model: ModelOption = EMBEDDED,
    algorithm: Annotated[
        str, typer.Option("--algorithm", "-a", help="How to search; the list stands below.", rich_help_panel=_ALGORITHM)
    ] = "beam",
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option", "-o", metavar="NAME=VALUE", help="An option of the algorithm.", rich_help_panel=_ALGORITHM
        ),
    ] = None,
    n: Annotated[int | None, typer.Option("--n", help="Chains to sample.", rich_help_panel=_ALGORITHM)] = None,
    width: Annotated[int | None, typer.Option(help="Children of a level.", rich_help_panel=_ALGORITHM)] = None,
    keep: Annotated[int | None, typer.Option(help="Paths kept of a level.", rich_help_panel=_ALGORITHM)] = None,
    expand: Annotated[int | None, typer.Option(help="Children of a path.", rich_help_panel=_ALGORITHM)] = None,
    seed: Annotated[int, typer.Option("--seed", help="Same seed, same tree.", rich_help_panel=_ALGORITHM)] = 0,
    tokens: Annotated[
        int | None, typer.Option(help="Stop after so many tokens, sampled and scored.", rich_help_panel=_BUDGET)
    ] = None,
    nodes: Annotated[int | None, typer.Option(help="Stop after so many nodes.", rich_help_panel=_BUDGET)] = None,
    steps: Annotated[
        int | None, typer.Option(help="Stop after so many steps, copies of nodes counted.", rich_help_panel=_BUDGET)
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="Stop after so long.", rich_help_panel=_BUDGET)] = None,
    kv_bytes: Annotated[
        str | None,
        typer.Option(
            "--kv-bytes", metavar="SIZE", help="Stop when the tree holds so much KV.", rich_help_panel=_BUDGET
        ),
    ] = None,
    temperature: TemperatureOption = None,
    top_p: TopPOption = 1.0,
    top_k: TopKOption = 0,
    min_p: MinPOption = 0.0,
    max_step_tokens: MaxStepTokensOption = None,
    max_depth: MaxDepthOption = None,
    delimiter: DelimiterOption = None,
    system: SystemOption = None,
    scorer: Annotated[
        str,
        typer.Option(
            "--scorer",
            help="What values a step: auto, reward, logprob, self-eval, prm; a verifier: arithmetic, math, command.",
            rich_help_panel=JUDGING_PANEL,
        ),
    ] = "auto",
    reward_model: RewardModelOption = None,
    reward_preset: RewardPresetOption = None,
    verify: Annotated[
        str,
        typer.Option(
            "--verify",
            help="What checks the answer: auto, none, arithmetic, math, command.",
            rich_help_panel=JUDGING_PANEL,
        ),
    ] = "auto",
    expected: Annotated[
        str | None,
        typer.Option(
            "--expected",
            metavar="ANSWER",
            help="The right answer; math-verify compares.",
            rich_help_panel=JUDGING_PANEL,
        ),
    ] = None,
    verify_command: Annotated[
        str | None,
        typer.Option(
            "--verify-command",
            metavar="CMD",
            help="Gets the answer on stdin and in a file, its last argument (or {}). Status 0: right. No shell.",
            rich_help_panel=JUDGING_PANEL,
        ),
    ] = None,
    verify_seconds: Annotated[
        float,
        typer.Option("--verify-seconds", help="Time limit of that command.", rich_help_panel=JUDGING_PANEL),
    ] = 10.0,
    steer: Annotated[
        bool,
        typer.Option("--steer", help="Let the verifier guide and stop the search.", rich_help_panel=JUDGING_PANEL),
    ] = False,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch",
            "-b",
            help="Steps grown at once: 16; with --input 64, on a GPU 256.",
            rich_help_panel=ENGINE_PANEL,
        ),
    ] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = "auto",
    kv_memory: KvMemoryOption = None,
    swap_space: SwapSpaceOption = None,
    block_size: Annotated[
        int | None, typer.Option("--block-size", help="Tokens of a KV block.", rich_help_panel=ENGINE_PANEL)
    ] = None,
    compile: CompileOption = False,
    offline: OfflineOption = False,
    trust_remote_code: TrustOption = False,
    source: Annotated[
        Path | None,
        typer.Option(
            "--input",
            "-i",
            metavar="FILE",
            help='Many problems: a prompt a line, or {"prompt": …, "id": …, "answer": …}; `-` is stdin.',
        ),
    ] = None,
    config_file: ConfigOption = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            "--trace",
            metavar="FILE",
            help="Write every event as JSONL; with --input a folder, a file a problem.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE.svg", help="Draw the tree.", rich_help_panel=_OUTPUT)
    ] = None,
    json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print one JSON object with the whole tree; with --input one a line, without.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Nothing on stderr but errors.", rich_help_panel=_OUTPUT)
    ] = False,
    no_progress: Annotated[
        bool, typer.Option("--no-progress", help="No tree while it grows, only the report.", rich_help_panel=_OUTPUT)
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Configuration, warnings, tracebacks.", rich_help_panel=_OUTPUT)
    ] = False,
) -> int:
    """Search for an answer with a tree of sampled steps. Only the answer goes to stdout.

    Exit status: 0 answered, 1 failure, 2 usage, 3 not solved, 130 interrupted. With --input each problem gives a line
    `id TAB answer`, as soon as it is done; 1 says that some problem failed, else 3 that some was not solved.
    """
    from frtool.config import SearchConfig

    from .searching import Output, answer

    if not verbose:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

    def config() -> SearchConfig:
        return SearchConfig(
            prompt=read_prompt(prompt, prompt_file) if source is None else str(source),
            model=model,
            algorithm=algorithm,
            algorithm_options=algorithm_options(option or [], {"n": n, "width": width, "keep": keep, "expand": expand}),
            seed=seed,
            tokens=tokens,
            nodes=nodes,
            steps=steps,
            seconds=seconds,
            kv_bytes=None if kv_bytes is None else size(kv_bytes, "--kv-bytes"),
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            scorer=scorer,
            reward_model=reward_model,
            reward_preset=reward_preset,
            verify=verify,
            expected=expected,
            verify_command=verify_command,
            verify_seconds=verify_seconds,
            steer=steer,
            batch=batch,
            max_step_tokens=max_step_tokens,
            max_depth=max_depth,
            delimiter=None if delimiter is None else unescape(delimiter),
            system=system,
            device=device,
            dtype=dtype,
            kv_memory=None if kv_memory is None else size(kv_memory, "--kv-memory"),
            swap_space=None if swap_space is None else size(swap_space, "--swap-space"),
            block_size=block_size,
            compile=compile,
            offline=offline,
            trust_remote_code=trust_remote_code,
        )

    output = Output(trace, picture, json, quiet, not no_progress, verbose)
    if source is None:
        return answer(config, output)
    from .many import answer_all

    if prompt is not None or prompt_file is not None:
        raise UsageError("a prompt and --input ask for two things", hint="leave one of them out")
    return answer_all(config, source, output)
