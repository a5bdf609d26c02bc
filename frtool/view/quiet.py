"""No view: only the mirror that the result is made of."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from frtool.search.events import Event

from .model import TreeModel

if TYPE_CHECKING:
    from rich.text import Text


class QuietView:
    """Keeps the model and shows nothing."""

    def __init__(self, model: TreeModel | None = None) -> None:
        self.model = model or TreeModel()

    def __enter__(self) -> QuietView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def progress(self, text: str) -> None:
        return None

    def say(self, text: Text) -> None:
        return None

    def show(self, event: Event) -> None:
        self.model.apply(event)
