"""Drawing and saving matplotlib's figures."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from frtool.files import save_bytes


def headless_pyplot() -> Any:
    """matplotlib.pyplot, drawing without a display. Raises ImportError without matplotlib (extra `plot`)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save_figure(figure: Any, folder: Path, name: str) -> list[Path]:
    """Write `name`.png and `name`.svg into `folder`, which must be there, and close the figure. The same figure gives
    the same bytes, and a file is replaced as a whole."""
    import matplotlib
    from matplotlib import pyplot

    paths = [folder / f"{name}.{kind}" for kind in ("png", "svg")]
    with matplotlib.rc_context({"svg.hashsalt": "frtool"}):
        for path in paths:
            drawn = io.BytesIO()
            metadata = {"Date": None} if path.suffix == ".svg" else None
            figure.savefig(drawn, format=path.suffix[1:], dpi=150, metadata=metadata)
            save_bytes(path, drawn.getvalue())
    pyplot.close(figure)
    return paths
