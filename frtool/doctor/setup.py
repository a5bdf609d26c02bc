"""What steers frtool from outside: models at hand, the configuration file, environment variables."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from .check import NOTE, OK, WARNING, Check

_VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "OMP_NUM_THREADS", "TRITON_CACHE_DIR",
    "TRITON_INTERPRET", "NO_COLOR", "FORCE_COLOR", "TERM",
)  # fmt: skip
"""What else changes a search or its picture. No secrets."""


def check_models() -> Iterator[Check]:
    from frtool.models.resolve import EMBEDDED_DIRECTORY

    if (EMBEDDED_DIRECTORY / "model.safetensors").is_file():
        yield Check("embedded model", OK, str(EMBEDDED_DIRECTORY))
    else:
        yield Check(
            "embedded model", WARNING, "its weights are not in this installation", hint="reinstall, or pass --model"
        )
    try:
        from frtool.models.catalogue import hub_cache

        cache = hub_cache()
    except ImportError:
        return
    count = len(list(cache.glob("models--*"))) if cache.is_dir() else 0
    yield Check("hub cache", NOTE, f"{cache}, {count} model{'s' * (count != 1)}; `frtool models` lists them")


def check_variables(unknown: Collection[str] = ()) -> Iterator[Check]:
    """The variables that are set; `unknown` are those that look like frtool's own and are none."""
    names = [n for n in sorted(os.environ) if n.startswith("FRTOOL_")] + [n for n in _VARIABLES if n in os.environ]
    for name in names:
        if name in unknown:
            yield Check(name, WARNING, f"{os.environ[name]}: no option of search has this name")
        else:
            yield Check(name, NOTE, os.environ[name])


def check_scratch() -> Check:
    """Triton compiles into a folder under the home directory."""
    home = Path(os.environ.get("TRITON_CACHE_DIR") or Path.home())
    if os.access(home, os.W_OK):
        return Check("kernel cache", OK, str(home))
    return Check("kernel cache", WARNING, f"{home} cannot be written", hint="set TRITON_CACHE_DIR to a folder that can")
