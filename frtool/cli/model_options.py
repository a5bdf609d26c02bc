"""Options that every command with a model has: the model, its memory, and how steps are sampled."""

from __future__ import annotations

from typing import Annotated

import typer

from .settings import expand_alias

ENGINE_PANEL = "Model and memory"
SAMPLING_PANEL = "Sampling"
JUDGING_PANEL = "Judging"

ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="`embedded`, a model directory, a GGUF file, or a Hugging Face id.",
        callback=expand_alias,
    ),
]
TemperatureOption = Annotated[
    float | None, typer.Option("--temperature", "-t", help="0 takes the likeliest.", rich_help_panel=SAMPLING_PANEL)
]
TopPOption = Annotated[
    float,
    typer.Option("--top-p", help="Keep the likeliest tokens up to this mass.", rich_help_panel=SAMPLING_PANEL),
]
TopKOption = Annotated[
    int, typer.Option("--top-k", help="Keep so many tokens; 0 keeps all.", rich_help_panel=SAMPLING_PANEL)
]
MinPOption = Annotated[
    float,
    typer.Option("--min-p", help="Keep tokens of at least this share of the top one.", rich_help_panel=SAMPLING_PANEL),
]
MaxStepTokensOption = Annotated[
    int | None, typer.Option("--max-step-tokens", help="Longest step.", rich_help_panel=SAMPLING_PANEL)
]
MaxDepthOption = Annotated[
    int | None, typer.Option("--max-depth", help="Most steps of a path.", rich_help_panel=SAMPLING_PANEL)
]
DelimiterOption = Annotated[
    str | None,
    typer.Option("--delimiter", help=r"Text that ends a step; `\n` is a line break.", rich_help_panel=SAMPLING_PANEL),
]
SystemOption = Annotated[
    str | None, typer.Option("--system", help="System prompt of a chat model.", rich_help_panel=SAMPLING_PANEL)
]

DeviceOption = Annotated[
    str | None,
    typer.Option("--device", help="cpu, cuda, cuda:1; default the best there is.", rich_help_panel=ENGINE_PANEL),
]
DtypeOption = Annotated[
    str,
    typer.Option(
        "--dtype",
        help="auto, float32, bfloat16, float16; int4: weights of 4 bits, on a CPU.",
        rich_help_panel=ENGINE_PANEL,
    ),
]
KvMemoryOption = Annotated[
    str | None,
    typer.Option("--kv-memory", metavar="SIZE", help="Of the KV cache, such as 2GiB.", rich_help_panel=ENGINE_PANEL),
]
SwapSpaceOption = Annotated[
    str | None,
    typer.Option(
        "--swap-space",
        metavar="SIZE",
        help="Host memory for KV that a full cache gives up; default on a GPU: where it pays.",
        rich_help_panel=ENGINE_PANEL,
    ),
]
CompileOption = Annotated[
    bool, typer.Option("--compile", help="Compile the model's dense part (GPU).", rich_help_panel=ENGINE_PANEL)
]
OfflineOption = Annotated[
    bool, typer.Option("--offline", help="Use the local model cache only.", rich_help_panel=ENGINE_PANEL)
]
TrustOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that a model brings.", rich_help_panel=ENGINE_PANEL)
]

RewardModelOption = Annotated[
    str | None,
    typer.Option(
        "--reward-model",
        help="A process reward model that values the steps: a directory, or a Hugging Face id.",
        callback=expand_alias,
        rich_help_panel=JUDGING_PANEL,
    ),
]
RewardPresetOption = Annotated[
    str | None,
    typer.Option(
        "--reward-preset",
        metavar="NAME|FILE.toml",
        help="How to read it; default by its name. FILE: your own convention.",
        rich_help_panel=JUDGING_PANEL,
    ),
]
