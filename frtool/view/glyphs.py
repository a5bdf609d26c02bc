"""What lines, marks, bars and figures are drawn with."""

from __future__ import annotations

from dataclasses import dataclass

from .line import Line

BEST = "bold green"
DIM = "dim"


@dataclass(frozen=True, slots=True)
class Glyphs:
    """What lines and marks are drawn with."""

    fork: str = "├╴"
    last: str = "╰╴"
    pipe: str = "│ "
    right: str = "✓"
    wrong: str = "✗"
    finished: str = "●"
    cut: str = "◑"
    step: str = "○"
    closed: str = "◉"
    dropped: str = "∅"
    evicted: str = "◌"
    growing: str = "⋯"
    copies: str = "×"  # noqa: RUF001
    more: str = "…"
    full: str = "━"
    rest: str = "─"
    bars: str = "▏▎▍▌▋▊▉█"
    spark_levels: str = "▁▂▃▄▅▆▇█"
    edge: str = "│"
    dot: str = " · "

    def bar(self, value: float, total: float, width: int) -> Line:
        """How much of a total is used."""
        used = min(max(value / total, 0.0), 1.0) if total else 0.0
        full = round(used * width)
        return Line((self.full * full, "cyan"), (self.rest * (width - full), DIM))

    def share(self, value: float | None, width: int) -> str:
        """A value in [0, 1] as a bar of exactly `width` cells."""
        if value is None or value != value:
            return " " * width
        steps = len(self.bars)
        parts = round(min(max(value, 0.0), 1.0) * width * steps)
        bar = self.bars[-1] * (parts // steps) + (self.bars[parts % steps - 1] if parts % steps else "")
        return bar.ljust(width)

    def spark(self, history: list[int], width: int) -> str:
        """The last `width` values of a history, the highest at full height."""
        history = history[-width:]
        top = max(history, default=0) or 1
        return "".join(self.spark_levels[round((len(self.spark_levels) - 1) * max(v, 0) / top)] for v in history)


UNICODE = Glyphs()
ASCII = Glyphs(
    fork="|-", last="`-", pipe="| ", right="+", wrong="!", finished="*", cut="~", step="o", closed="=", dropped="-",
    evicted=".", growing="..", copies="x", more="..", full="#", rest="-", bars="#", spark_levels="_.-=#", edge="|",
    dot=" | ",
)  # fmt: skip


def glyphs_for(encoding: str | None) -> Glyphs:
    return UNICODE if (encoding or "").lower().replace("-", "").startswith("utf") else ASCII


def number(value: float | None) -> str:
    """A value in [0, 1] in four cells."""
    return "   -" if value is None or value != value else f"{value:4.2f}"


def bytes_text(count: int) -> str:
    """`3.1 MiB`."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def verdict(verified: bool, glyphs: Glyphs) -> Line:
    return Line((f"{glyphs.right} verified", "bold green") if verified else (f"{glyphs.wrong} wrong", "red"))
