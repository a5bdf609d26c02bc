"""`frtool eval`: how often searches are right, and what that costs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

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
from .values import algorithm_options, size, unescape

_SEARCH, _OUTPUT = "Search", "Output"


def evaluate(
    tasks: Annotated[
        list[str],
        typer.Argument(
            metavar="TASK…",
            help="`game24`, `countdown[:numbers=4,low=1,high=99,targets=10-100,n=400,seed=0]`, "
            "`reasoning-gym:NAME[:n=100,seed=0]`, or `FILE.jsonl[:check=exact|numeric|math]` of prompts and answers.",
        ),
    ],
    algorithms: Annotated[
        str, typer.Option("--algorithms", "-a", help="Names, with commas between.", rich_help_panel=_SEARCH)
    ] = "greedy,best-of-n,beam,mcts",
    budgets: Annotated[
        str, typer.Option("--budgets", help="Steps that a search may sample.", rich_help_panel=_SEARCH)
    ] = "48",
    baseline_budgets: Annotated[
        str | None,
        typer.Option(
            "--baseline-budgets",
            metavar="N,…",
            help="More of them for best-of-n alone, with which the others are compared at equal tokens.",
            rich_help_panel=_SEARCH,
        ),
    ] = None,
    seeds: Annotated[str, typer.Option("--seeds", help="Of the samples.", rich_help_panel=_SEARCH)] = "0",
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option", "-o", metavar="ALGORITHM.NAME=VALUE", help="Such as `beam.keep=8`.", rich_help_panel=_SEARCH
        ),
    ] = None,
    control: Annotated[
        str | None,
        typer.Option("--control", help="`random-policy`: the line that a model has to beat.", rich_help_panel=_SEARCH),
    ] = None,
    verify_command: Annotated[
        str | None,
        typer.Option(
            "--verify-command",
            metavar="CMD",
            help="Judges in place of the task, as in `frtool search`; may take {id}, {prompt}, {expected}.",
            rich_help_panel=_SEARCH,
        ),
    ] = None,
    verify_seconds: Annotated[
        float, typer.Option("--verify-seconds", help="Time limit of that command.", rich_help_panel=_SEARCH)
    ] = 10.0,
    limit: Annotated[int | None, typer.Option(help="Problems of each task.", rich_help_panel=_SEARCH)] = None,
    offset: Annotated[int, typer.Option(help="Problems to leave out first.", rich_help_panel=_SEARCH)] = 0,
    temperature: TemperatureOption = None,
    top_p: TopPOption = 1.0,
    top_k: TopKOption = 0,
    min_p: MinPOption = 0.0,
    path_steps: Annotated[
        int,
        typer.Option("--path-steps", help="Steps of a path where a problem does not say.", rich_help_panel=_SEARCH),
    ] = 8,
    max_step_tokens: MaxStepTokensOption = None,
    max_depth: MaxDepthOption = None,
    delimiter: DelimiterOption = None,
    model: ModelOption = EMBEDDED,
    system: SystemOption = None,
    scorer: Annotated[
        str,
        typer.Option(
            "--scorer",
            help="What values a step: auto, reward, logprob, self-eval, prm.",
            rich_help_panel=JUDGING_PANEL,
        ),
    ] = "auto",
    reward_model: RewardModelOption = None,
    reward_preset: RewardPresetOption = None,
    batch: Annotated[
        int, typer.Option("--batch", "-b", help="Steps grown at once, over all problems.", rich_help_panel=ENGINE_PANEL)
    ] = 64,
    device: DeviceOption = None,
    dtype: DtypeOption = "auto",
    kv_memory: KvMemoryOption = None,
    swap_space: SwapSpaceOption = None,
    compile: CompileOption = False,
    offline: OfflineOption = False,
    trust_remote_code: TrustOption = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Write results.jsonl, summary.json, a plot.", rich_help_panel=_OUTPUT
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Leave out what DIR holds already.", rich_help_panel=_OUTPUT)
    ] = False,
    no_plot: Annotated[bool, typer.Option("--no-plot", help="Draw none.", rich_help_panel=_OUTPUT)] = False,
    terminal_plot: Annotated[
        bool, typer.Option("--terminal-plot", help="Draw accuracy in the terminal too.", rich_help_panel=_OUTPUT)
    ] = False,
    config_file: ConfigOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel=_OUTPUT)] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Nothing on stderr but errors.", rich_help_panel=_OUTPUT)
    ] = False,
) -> int:
    """Measure the accuracy of searches over sets of problems, and what it costs.

    The scorer alone chooses the answer; the verifier only grades it. pass@N says whether any finished path was right.
    """
    from frtool.config import SearchConfig
    from frtool.eval.control import RANDOM_POLICY
    from frtool.eval.plan import Plan

    from .evaluating import Output, evaluate

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if control not in (None, RANDOM_POLICY):
        raise UsageError(f"--control `{control}` is unknown", hint=f"there is {RANDOM_POLICY}")
    if resume and out is None:
        raise UsageError("--resume needs the --out of the run that it goes on with")
    if terminal_plot and json:
        raise UsageError("--terminal-plot has no use with --json", hint="leave one of them out")
    plan = Plan(
        tasks=tuple(tasks),
        algorithms=(*_names(algorithms), *([RANDOM_POLICY] if control else ())),
        budgets=tuple(_integers("--budgets", budgets)),
        baseline_budgets=() if baseline_budgets is None else tuple(_integers("--baseline-budgets", baseline_budgets)),
        seeds=tuple(_integers("--seeds", seeds)),
        offset=offset,
        limit=limit,
        options=_options(option or []),
        path_steps=path_steps,
        search=SearchConfig(
            prompt=" ".join(tasks),
            model=model,
            steps=1,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            batch=batch,
            max_step_tokens=max_step_tokens,
            max_depth=max_depth,
            verify_command=verify_command,
            verify_seconds=verify_seconds,
            delimiter=None if delimiter is None else unescape(delimiter),
            system=system,
            scorer=scorer,
            reward_model=reward_model,
            reward_preset=reward_preset,
            device=device,
            dtype=dtype,
            kv_memory=None if kv_memory is None else size(kv_memory, "--kv-memory"),
            swap_space=None if swap_space is None else size(swap_space, "--swap-space"),
            compile=compile,
            offline=offline,
            trust_remote_code=trust_remote_code,
        ).resolved(),
    )
    return evaluate(plan, Output(out, resume, not no_plot, json, quiet, terminal_plot))


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _integers(flag: str, text: str) -> list[int]:
    try:
        return [int(part) for part in _names(text)]
    except ValueError:
        raise UsageError(f"{flag} `{text}` is no list of whole numbers", hint="write it like 16,48,160") from None


def _options(pairs: list[str]) -> dict[str, dict[str, object]]:
    """Options by algorithm, from `algorithm.name=value`."""
    by_algorithm: dict[str, list[str]] = {}
    for pair in pairs:
        algorithm, dot, rest = pair.partition(".")
        if not dot or "=" in algorithm:
            raise UsageError(f"--option `{pair}` names no algorithm", hint="for example `-o beam.keep=8`")
        by_algorithm.setdefault(algorithm.strip(), []).append(rest)
    return {name: algorithm_options(given, {}) for name, given in by_algorithm.items()}
