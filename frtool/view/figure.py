"""Saving matplotlib's figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def save_figure(figure: Any, folder: Path, name: str) -> list[Path]:
    """Write `name`.png and `name`.svg into `folder`, which must be there, and close the figure. The same figure gives
    the same bytes."""
    import matplotlib
    from matplotlib import pyplot

    paths = [folder / f"{name}.{kind}" for kind in ("png", "svg")]
    with matplotlib.rc_context({"svg.hashsalt": "frtool"}):
        for path in paths:
            figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
    return paths
