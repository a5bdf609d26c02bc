"""Results, one problem a line, written as they come; and going on where an earlier run stopped."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from frtool.errors import UsageError
from frtool.files import save_text
from frtool.view.safe import safe_json

from .plan import Cell


@dataclass(frozen=True, slots=True)
class Result:
    """What one search on one problem gave."""

    task: str
    algorithm: str
    budget: int | None
    id: str
    seed: int
    correct: bool
    """The selected answer, judged by the task's verifier."""
    passed: bool
    """Any finished path had a right answer (pass@N)."""
    answer: str | None
    reward: float | None
    """The scorer's value of the selected path."""
    reason: str
    steps: int
    nodes: int
    policy_tokens: int
    scorer_tokens: int
    prompt_tokens: int
    latency: float
    """Seconds from this search's beginning to its end, beside the others in the batch."""
    seconds: float
    """Of the whole cell's time, since the result before: their sum is what the cell took."""
    kv_peak_bytes: int = 0
    """Of the pool that all searches of the cell share, so far."""
    kv_unshared_peak_bytes: int = 0

    @property
    def cell(self) -> Cell:
        return Cell(self.task, self.algorithm, self.budget)

    @property
    def key(self) -> tuple[Cell, str, int]:
        return self.cell, self.id, self.seed


class ResultFile:
    """`results.jsonl` in a folder: appended and flushed line by line."""

    def __init__(self, folder: Path, settings: dict[str, Any], *, resume: bool) -> None:
        """Read what is there. Raises UsageError for results of other settings, and for results without `resume`."""
        self.results: list[Result] = []
        self._path = folder / "results.jsonl"
        self._file: TextIO | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            known = folder / "settings.json"
            if self._path.exists():
                if not resume:
                    raise UsageError(f"{folder} holds results already", hint="pass --resume, or another --out")
                if not known.exists() or json.loads(known.read_text("utf-8")) != json.loads(safe_json(settings)):
                    raise UsageError(f"the results in {folder} come from other settings", hint="pass another --out")
                self.results = _read(self._path)
            save_text(known, safe_json(settings, indent=2) + "\n")
        except (OSError, ValueError) as error:
            said = getattr(error, "strerror", None) or str(error)
            raise UsageError(f"cannot write results into {folder}: {said}") from None

    def __enter__(self) -> ResultFile:
        self._file = self._path.open("a", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        self._file.close()

    def add(self, result: Result) -> None:
        assert self._file is not None
        self._file.write(safe_json(asdict(result)) + "\n")
        self._file.flush()
        self.results.append(result)


def _read(path: Path) -> list[Result]:
    """All whole lines; a last one that a killed run cut off is removed from the file."""
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    names = {item.name for item in fields(Result)}
    try:
        records = [json.loads(line) for line in whole.decode("utf-8").splitlines()]
        return [Result(**{key: value for key, value in record.items() if key in names}) for record in records]
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{path.name} is not whole: {error}") from None
