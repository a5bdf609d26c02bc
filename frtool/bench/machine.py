"""What a benchmark of searches ran on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

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
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "model": loaded.name,
        "parameters": loaded.parameters,
    }
