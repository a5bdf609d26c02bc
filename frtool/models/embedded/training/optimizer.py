"""Muon for the matrices (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/), AdamW for the rest."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn


def orthogonalise(gradients: Tensor) -> Tensor:
    """Five Newton-Schulz steps towards U V' of each matrix U S V' in [B, rows, columns], in bf16."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = gradients.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.mT if tall else x
    return result


class Muon:
    """Momentum, made orthogonal, as the step: all matrices of one shape at once."""

    def __init__(self, parameters: list[nn.Parameter], momentum: float = 0.95) -> None:
        shapes: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            shapes[parameter.shape].append(parameter)
        self.groups = list(shapes.values())
        self.buffers = [torch.zeros((len(group), *group[0].shape), device=group[0].device) for group in self.groups]
        self.momentum = momentum

    @torch.no_grad()
    def step(self, rate: float) -> None:
        for group, buffer in zip(self.groups, self.buffers, strict=True):
            gradients = torch.stack([parameter.grad for parameter in group if parameter.grad is not None])
            buffer.lerp_(gradients, 1 - self.momentum)
            update = orthogonalise(gradients.lerp(buffer, self.momentum))
            scale = rate * max(1.0, update.shape[-2] / update.shape[-1]) ** 0.5
            torch._foreach_add_(list[Tensor](group), list(update.to(group[0].dtype).unbind()), alpha=-scale)
            for parameter in group:
                parameter.grad = None


def rate_at(progress: float, warm: float, decay: float) -> float:
    """Share of the full rate: up over the first `warm`, constant, then straight down to 0 over the last `decay`."""
    return max(0.0, min(progress / warm, 1.0, (1.0 - progress) / decay))
