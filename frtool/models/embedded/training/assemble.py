"""Make the model directory out of the parts that a training with `--part-mib` wrote.

python -m frtool.models.embedded.training.assemble PARTS_DIRECTORY MODEL_DIRECTORY
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .checkpoint import join_parts, write_checkpoint
from .network import Shape


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", type=Path)
    parser.add_argument("model", type=Path)
    options = parser.parse_args()
    write_checkpoint(options.model, join_parts(options.parts), Shape())


if __name__ == "__main__":
    main()
