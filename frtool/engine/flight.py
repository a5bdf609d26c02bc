"""A forward pass whose logits have not been read yet, and the reading of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from frtool.errors import FrtoolError

from .noise import row_noise
from .options import EngineOptions
from .rows import Row
from .sampling import Sampler

if TYPE_CHECKING:
    from frtool.models.load import LoadedModel


@dataclass(slots=True)
class Flight:
    """Logits float32 [R, vocab] and whose they are: first those of `growing`, then of `sealed`, then, where rewards
    are read, those after the query of `sealed` and of `ended`."""

    logits: torch.Tensor
    growing: list[Row]
    """They sample. A row that was fed tokens it had not drawn yet stands there once for each that it draws."""
    sealed: list[Row]
    """Their step is whole; the logits belong to the token that follows."""
    ended: list[Row]
    """Their path is over; only the reward is wanted."""

    def next_logits(self, index: int) -> torch.Tensor:
        """[vocab]: of the token after `sealed[index]`."""
        return self.logits[len(self.growing) + index]


@dataclass(slots=True)
class Readings:
    """What the host learns from a flight."""

    tokens: list[int]
    logprobs: list[float]
    """Of `growing` and of the rows that joined."""
    lows: list[float]
    highs: list[float]
    """Edges of the intervals of these tokens."""
    ends: list[float]
    """Of `sealed`: the probability that the path ends here."""
    rewards: list[float]
    """Of `sealed` and `ended`, empty where none are read."""


class Reader:
    """Samples and reads on the device, then hands everything to the host in one transfer."""

    def __init__(self, loaded: LoadedModel, options: EngineOptions) -> None:
        tokens = loaded.reward_tokens
        marks = (tokens.query, tokens.good, tokens.bad) if tokens else ()
        self._device = loaded.device
        self._sampler = Sampler(options, loaded.device, suppressed=marks)
        self._ends = torch.tensor(sorted(loaded.eos_ids), dtype=torch.long, device=loaded.device)
        self._labels = torch.tensor(marks[1:], dtype=torch.long, device=loaded.device)
        self._reads_rewards = options.read_rewards

    def read(self, flight: Flight | None, joining: Sequence[Row]) -> Readings:
        """Raises FrtoolError that names the step whose logits are NaN."""
        nothing = torch.empty(0)
        tokens = logprobs = lows = highs = ends = rewards = nothing
        growing = [*(flight.growing if flight else ()), *joining]
        sealed = flight.sealed if flight else []
        judged = [*sealed, *flight.ended] if flight and self._reads_rewards else []
        if growing:
            placed = any(row.course for row in growing)
            drawn = self._sampler.sample(self._to_sample(flight, joining), self._noise(growing), placed=placed)
            tokens, logprobs, (lows, highs) = *drawn[:2], drawn[2].unbind(1)
        if flight is not None:
            first = len(flight.growing)
            if sealed:
                after = flight.logits[first : first + len(sealed)]
                ends = torch.softmax(after, -1).index_select(1, self._ends).sum(-1)
            if judged:
                first += len(sealed)
                labels = flight.logits[first : first + len(judged)].index_select(1, self._labels)
                rewards = torch.softmax(labels, -1)[:, 0]
        readings = Readings(*_to_host([tokens, logprobs, lows, highs, ends, rewards]))  # type: ignore[arg-type]
        for rows, values in (
            (growing, readings.logprobs),
            (sealed, readings.ends),
            (judged, readings.rewards),
        ):
            for row, value in zip(rows, values, strict=True):
                if value != value:
                    raise nan_error(f"step {row.name}, after {row.sampled} tokens")
        return readings

    def _to_sample(self, flight: Flight | None, joining: Sequence[Row]) -> torch.Tensor:
        """float32 [growing and joining, vocab]; those that join draw from their parent's logits."""
        parts = [flight.logits[: len(flight.growing)]] if flight and flight.growing else []
        firsts = [row.parent.logits for row in joining if row.parent.logits is not None]
        if firsts:
            parts.append(torch.stack(firsts).float())
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _noise(self, rows: Sequence[Row]) -> torch.Tensor | None:
        if self._sampler.greedy:
            return None
        indices, before = [], None
        for row in rows:
            indices.append(indices[-1] + 1 if row is before else row.sampled)
            before = row
        noise = row_noise(rows, indices)
        return torch.from_numpy(noise).to(self._device, non_blocking=True)


def nan_error(where: str) -> FrtoolError:
    return FrtoolError(
        f"the model gave NaN logits at {where}",
        hint="its weights or number format do not work here; try --dtype float32",
    )


def _to_host(tensors: list[torch.Tensor]) -> list[list[float]]:
    """The values of 1-D tensors, in one transfer. Integers come as they are from the CPU, and exact from elsewhere."""
    away = next((tensor.device for tensor in tensors if tensor.device.type != "cpu"), None)
    if away is None:
        return [tensor.tolist() for tensor in tensors]
    # float64 holds token ids and float32 values exactly.
    present = [tensor.double() for tensor in tensors if len(tensor)]
    joined = torch.cat(present).tolist()
    values = []
    for tensor in tensors:
        part, joined = joined[: len(tensor)], joined[len(tensor) :]
        values.append(part if tensor.dtype.is_floating_point else [int(value) for value in part])
    return values
