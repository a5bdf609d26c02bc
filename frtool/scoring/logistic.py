"""The logistic function of a few numbers, each computed by itself."""

from __future__ import annotations

import torch


def logistic(x: torch.Tensor) -> torch.Tensor:
    """1 / (1 + exp(-x)), of float32 `[R]`.

    The last bits of `torch.sigmoid` depend on where a number stands among the others; those of a softmax over a row of
    two do not.
    """
    limited = x.clamp(-100, 100)  # beyond, nothing changes but that infinity gives no number
    return torch.softmax(torch.stack((limited, torch.zeros_like(x)), -1), -1)[:, 0]
