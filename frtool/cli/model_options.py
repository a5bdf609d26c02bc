"""Options that every command with a model has."""

from __future__ import annotations

from typing import Annotated

import typer

ENGINE_PANEL = "Model and memory"

DeviceOption = Annotated[
    str | None,
    typer.Option("--device", help="cpu, cuda, cuda:1; default the best there is.", rich_help_panel=ENGINE_PANEL),
]
DtypeOption = Annotated[
    str, typer.Option("--dtype", help="auto, float32, bfloat16, float16.", rich_help_panel=ENGINE_PANEL)
]
KvMemoryOption = Annotated[
    str | None,
    typer.Option("--kv-memory", metavar="SIZE", help="Of the KV cache, such as 2GiB.", rich_help_panel=ENGINE_PANEL),
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
