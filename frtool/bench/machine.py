"""What a benchmark of searches ran on, and where its record goes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frtool.files import save_text

if TYPE_CHECKING:
    from frtool.models.load import LoadedModel


def machine(loaded: LoadedModel) -> dict[str, Any]:
    """The device, the library and the model, as JSON values."""
    import torch

    on_gpu = loaded.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(loaded.device) if on_gpu else "cpu",
        "threads": None if on_gpu else torch.get_num_threads(),
        "cores": os.cpu_count(),
        "capability": None if on_gpu else torch.backends.cpu.get_cpu_capability(),
        "load_average": None if on_gpu else os.getloadavg()[0],
        "torch": torch.__version__,
        "dtype": loaded.number_format,
        "model": loaded.name,
        "parameters": loaded.parameters,
    }


def put_out(record: dict[str, Any], output: Path | None) -> None:
    """Print a record as JSON, and keep it in `output`."""
    text = json.dumps(record, indent=2) + "\n"
    print(text, end="")
    if output is not None:
        save_text(output, text)
