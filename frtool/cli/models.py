"""`frtool models`: what could be passed to `--model` on this machine."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from frtool.errors import UsageError

from .show import print_text

if TYPE_CHECKING:
    from frtool.models.catalogue import FoundModel


def models(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="FOLDER", help="Where to look too; by default here.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """List the models on this machine: the embedded one, the hub cache, and what lies in folders.

    Nothing is loaded or downloaded.
    """
    places = folders or [Path(".")]
    for place in places:
        if not place.is_dir():
            reason = "is no folder" if place.exists() else "does not exist"
            raise UsageError(f"{place} {reason}", hint="pass folders that hold models")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from frtool.models.catalogue import find_models, hub_cache
    from frtool.view.safe import safe_json

    found = list(find_models(places, hub_cache()))
    if json:
        records = [asdict(model) | {"path": str(model.path)} for model in found]
        print_text(safe_json({"hub_cache": str(hub_cache()), "models": records}, indent=2) + "\n")
    else:
        print_text(_report(found))
    return 0


def _report(found: list[FoundModel]) -> str:
    from frtool.view.glyphs import bytes_text

    from .table import table

    rows = [("model", "weights", "parameters", "architecture", "can be searched")]
    for model in found:
        size = "-" if model.stored_bytes is None else bytes_text(model.stored_bytes)
        verdict = f"no: {model.refusal}" if model.refusal else "yes" if model.tested else "yes, if its trial run agrees"
        rows.append((model.name, size, _count(model.parameters), model.architecture or "-", verdict))
    return table(rows, 200)


def _count(parameters: int | None) -> str:
    if parameters is None:
        return "-"
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if parameters >= limit:
            return f"{parameters / limit:.3g} {unit}"
    return str(parameters)
