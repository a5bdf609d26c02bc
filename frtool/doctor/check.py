"""One finding of the doctor."""

from __future__ import annotations

from dataclasses import dataclass

OK, NOTE, WARNING, FAILED = "ok", "note", "warning", "failed"


@dataclass(frozen=True, slots=True)
class Check:
    """`status`: 'ok', 'note' (neither good nor bad), 'warning' (works, but not as it should) or 'failed'."""

    name: str
    status: str
    text: str
    hint: str | None = None
