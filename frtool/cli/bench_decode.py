"""`frtool bench decode`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from frtool.errors import UsageError
from frtool.threads import spin_briefly

from .bench_output import check_terminal_plot, progress, publish
from .settings import expand_alias

if TYPE_CHECKING:
    import torch

    from frtool.models.load import LoadedModel

_SHAPES = ("llama-3.2-1b", "llama-3.1-8b", "smollm2-135m", "embedded")
_BASELINES = ("hf", "llamacpp")


def decode(
    model: Annotated[
        str | None, typer.Option(help="A model: directory, FILE.gguf or hub id.", callback=expand_alias)
    ] = None,
    shape: Annotated[
        str | None, typer.Option(help=f"Or a shape with random weights: {', '.join(_SHAPES)}; default by the machine.")
    ] = None,
    batch_sizes: Annotated[
        str | None, typer.Option("--batch-sizes", metavar="N,N,…", help="Branches; default by the machine.")
    ] = None,
    prefix: Annotated[int | None, typer.Option(help="Tokens that the branches share; default by the machine.")] = None,
    suffix: Annotated[int | None, typer.Option(help="Tokens that each branch has to itself.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps that are timed.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16, float16 or int4; default by the machine.")
    ] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the dense part (GPU).")] = False,
    baseline: Annotated[str, typer.Option(metavar="NAME,…", help="Beside it: hf, llamacpp, or none.")] = "none",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; default the best there is.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="DIR", help="Draw a chart there; needs matplotlib.")] = None,
    terminal_plot: Annotated[bool, typer.Option("--terminal-plot", help="Draw the times in the terminal too.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """A decode step of a search against its roofline and other libraries."""
    check_terminal_plot(terminal_plot, json)
    if terminal_plot:
        from frtool.view.chart import check_chart

        check_chart()
    if model is not None and shape is not None:
        raise UsageError("--model and --shape name two models", hint="leave one of them out")
    if shape is not None and shape not in _SHAPES:
        raise UsageError(f"--shape `{shape}` is unknown", hint=f"choose from {', '.join(_SHAPES)}")
    for name, value in {"prefix": prefix, "suffix": suffix, "steps": steps}.items():
        if value is not None and value < 1:
            raise UsageError(f"--{name} is {value}, but must be at least 1")
    sizes = None if batch_sizes is None else parse_batch_sizes(batch_sizes)
    baselines = [] if baseline == "none" else [name.strip() for name in baseline.split(",")]
    for name in baselines:
        if name not in _BASELINES:
            raise UsageError(f"--baseline `{name}` is unknown", hint=f"choose from {', '.join(_BASELINES)}, none")
    spin_briefly()
    from frtool.bench.decode import run
    from frtool.models.devices import choose_device

    target = choose_device(device)
    on_gpu = target.type == "cuda"
    if compile and not on_gpu:
        raise UsageError("--compile needs a CUDA device", hint="leave it out: on a CPU a step is never compiled")
    if model is None and shape is None:
        shape = "llama-3.2-1b" if on_gpu else "embedded"
    loaded = _load(model, shape, target, dtype)
    small = not on_gpu or loaded.is_embedded
    try:
        report = run(
            loaded,
            sizes or ([1, 64, 256] if on_gpu else [1, 8, 64]),
            prefix=prefix or (min(512, loaded.max_positions // 2) if small else 2048),
            suffix=suffix or (32 if small else 64),
            steps=steps or (16 if small else 32),
            compile=compile,
            baselines=baselines,
            on_progress=progress,
        )
    except ValueError as error:
        raise UsageError(str(error)) from None
    from frtool.bench.decode_report import decode_table, draw_chart, terminal_chart

    publish(
        report, table=decode_table, chart=terminal_chart, draw=draw_chart, notes=report.notes, json=json,
        terminal_plot=terminal_plot, plot=plot,
    )  # fmt: skip
    return 0


def parse_batch_sizes(text: str) -> list[int]:
    """`1,16,64` as numbers. Raises UsageError."""
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--batch-sizes `{text}` is no list of numbers", hint="write it like 1,16,64") from None
    if min(sizes) < 1:
        raise UsageError(f"--batch-sizes has {min(sizes)}, but every size must be at least 1")
    return sizes


def _load(model: str | None, shape: str | None, device: torch.device, dtype: str | None) -> LoadedModel:
    from frtool.models.load import load_model, pack_weights

    if shape is None or shape == "embedded":
        return load_model(model or "embedded", device=device, dtype=dtype, on_progress=progress)
    from frtool.bench.decode_models import parameter_count, random_model
    from frtool.models.devices import choose_dtype, set_threads, take_four_bits
    from frtool.models.memory import require_memory

    four_bit, wish = take_four_bits(dtype, device)
    parameters = parameter_count(shape)
    chosen = choose_dtype(wish, device, parameters)
    require_memory(shape, parameters * chosen.itemsize, device)
    progress(f"making {shape} with random weights")
    set_threads(parameters)
    return pack_weights(random_model(shape, device, chosen), four_bit)
