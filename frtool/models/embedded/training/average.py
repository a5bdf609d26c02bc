"""Average the weights of two checkpoints, of which the second went on from the first.

A training that goes on fits its own puzzles better than those it never sees the like of. The straight line between the
two keeps most of both (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", arXiv:2109.01903).

python -m frtool.models.embedded.training.average FIRST SECOND OUT --share 0.7
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from .checkpoint import write_checkpoint
from .network import Shape


def average(first: dict[str, Tensor], second: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """(1 - share) * first + share * second, summed in fp32, in the dtype of `second`. Raises ValueError where the two
    do not hold the same tensors."""
    if {name: tensor.shape for name, tensor in first.items()} != {n: t.shape for n, t in second.items()}:
        raise ValueError("the checkpoints do not hold the same tensors")
    return {
        name: torch.lerp(first[name].float(), tensor.float(), share).to(tensor.dtype) for name, tensor in second.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--share", type=float, default=0.7, help="of the second checkpoint in the average")
    options = parser.parse_args()
    first, second = (load_file(directory / "model.safetensors") for directory in (options.first, options.second))
    write_checkpoint(options.out, average(first, second, options.share), Shape())


if __name__ == "__main__":
    main()
