"""From logits to tokens: temperature, top-k, top-p, min-p, and one uniform number a token."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from .noise import FORCED
from .options import EngineOptions

# Candidates that top-p looks at before it sorts a whole row: sorting 50,000 entries costs a CPU milliseconds.
_CANDIDATES = 256
_SMALL_VOCAB = 1024
# Entries of a row that are first summed up, so that only one group of them has to be searched.
_GROUP = 256
# Below it nothing changes any more, and logits divided by it might overflow.
_LEAST_TEMPERATURE = 1e-6


class Sampler:
    """Draws tokens by inverting the cumulative distribution of what temperature and truncation leave.

    The order is that of transformers: temperature, top-k, top-p, min-p. `suppressed` tokens are never drawn. A row's
    result depends on its own logits and its own uniform number only.
    """

    def __init__(
        self, options: EngineOptions, device: torch.device, suppressed: Iterable[int] = (), rows: int = 0
    ) -> None:
        """Its working memory stays where it is as long as no call has more than `rows` rows."""
        self.greedy = options.greedy or options.temperature == 0
        self.temperature = max(options.temperature, _LEAST_TEMPERATURE)
        self.top_k = options.top_k
        self.top_p = options.top_p
        self.min_p = options.min_p
        ids = sorted(suppressed)
        self._suppressed = torch.tensor(ids, dtype=torch.long, device=device) if ids else None
        self._rows = rows
        # Fresh memory of this size costs a CPU more than what is computed in it.
        self._scratch = [torch.empty(0, 0, device=device)] * 2

    def sample(
        self, logits: torch.Tensor, uniforms: torch.Tensor | None, *, placed: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draw one token a row. Returns tokens int64 [n], their log-probabilities float32 [n] and their intervals
        float32 [n, 2]: every number from the lower edge up to the upper one draws that token.

        `logits` float32 [n, vocab], `uniforms` float32 [n] as in `noise`: in (0, 1), or negative where the token does
        not depend on chance; None where no row's does. Those rows have the interval (0, 0). Log-probabilities are
        natural and of the model's own distribution: temperature 1, nothing truncated. A row that holds NaN gets NaN.
        Unless `placed`, no row is told its token, and all intervals are (0, 0): that is a little faster.
        """
        probabilities, scaled = (self._room(i, logits) for i in range(2))
        torch.softmax(logits, -1, out=probabilities)
        allowed = logits
        if self._suppressed is not None:
            allowed = logits.index_fill(1, self._suppressed, float("-inf"))
        on_cpu = logits.device.type == "cpu"
        by_chance = on_cpu and not self.greedy and uniforms is not None and bool((uniforms > 0).all())
        if by_chance:  # a CPU finds the largest in a twentieth of the time that it takes to say where it is
            peak, top = probabilities.amax(-1, keepdim=True), logits.amax(-1, keepdim=True)
        else:
            peak, argmax = probabilities.max(-1, keepdim=True)
            top = logits.gather(1, argmax)
            best = argmax if allowed is logits else allowed.argmax(-1, keepdim=True)
        if self.greedy:
            tokens, intervals = best, None
        else:
            assert uniforms is not None
            weights = probabilities
            if self.temperature != 1 or allowed is not logits:
                torch.softmax(torch.div(allowed, self.temperature, out=scaled), -1, out=weights)
            uniforms = uniforms.unsqueeze(1)
            tokens, intervals = self._draw(weights, uniforms, placed)
            if not by_chance:
                fixed = uniforms < 0
                if intervals is not None:
                    intervals = intervals.masked_fill(fixed, 0.0)
                    best = torch.where(uniforms > FORCED, best, (FORCED - uniforms).long())
                tokens = torch.where(fixed, best, tokens)
        # The peak's probability is 1 / sum(exp(x - max)); unlike the token's own it cannot underflow.
        logprobs = logits.gather(1, tokens) - top + peak.log()
        return tokens.squeeze(1), logprobs.squeeze(1), peak.new_zeros(len(peak), 2) if intervals is None else intervals

    def _room(self, index: int, like: torch.Tensor) -> torch.Tensor:
        """An uninitialised tensor of the shape of `like`, reused by the next call."""
        rows, vocab = like.shape
        if len(self._scratch[index]) < rows or self._scratch[index].shape[1] != vocab:
            self._scratch[index] = like.new_empty(max(rows, self._rows), vocab)
        return self._scratch[index][:rows]

    def _draw(self, weights: torch.Tensor, uniforms: torch.Tensor, placed: bool) -> _Drawn:
        """Tokens int64 [n, 1] and their intervals [n, 2] from `weights` [n, vocab], whose rows sum to 1; it may be
        overwritten."""
        vocab = weights.shape[1]
        if 0 < self.top_k < vocab:
            return self._draw_sorted(*_largest(weights, self.top_k), uniforms, None, placed)
        if self.top_p >= 1:
            if self.min_p > 0:
                weights.masked_fill_(weights < self.min_p * weights.amax(-1, keepdim=True), 0.0)
            return _invert_large(weights, uniforms, placed)
        if weights.device.type != "cpu" or vocab <= _SMALL_VOCAB:
            return self._draw_sorted(*_largest(weights, vocab), uniforms, 1.0, placed)
        values, ids = _largest(weights, _CANDIDATES)
        tokens, intervals = self._draw_sorted(values, ids, uniforms, 1.0, placed)
        short = (values.cumsum(-1)[:, -1] < self.top_p).nonzero().squeeze(1)
        if len(short):
            tokens[short], edges = self._draw_sorted(*_largest(weights[short], vocab), uniforms[short], 1.0, placed)
            if intervals is not None and edges is not None:
                intervals[short] = edges
        return tokens, intervals

    def _draw_sorted(
        self, values: torch.Tensor, ids: torch.Tensor, uniforms: torch.Tensor, whole: float | None, placed: bool
    ) -> _Drawn:
        """Draw among falling `values` [n, k], truncated by top-p of mass `whole` (None: their sum) and by min-p."""
        if self.top_p < 1:
            mass = values.cumsum(-1)
            total = mass[:, -1:] if whole is None else whole
            # Kept while the mass before it is below p: the smallest set that reaches p.
            values = values.masked_fill(mass - values >= self.top_p * total, 0.0)
        if self.min_p > 0:
            values = values.masked_fill(values < self.min_p * values[:, :1], 0.0)
        index, intervals = _invert(values.cumsum(-1), uniforms, placed)
        return ids.gather(1, index), intervals


def _largest(weights: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` largest weights of each row, falling, with their token ids."""
    if count < weights.shape[1] and weights.shape[1] > _SMALL_VOCAB:
        values, ids = torch.topk(weights, count, dim=-1)
        return values, ids
    values, ids = torch.sort(weights, dim=-1, descending=True, stable=True)
    return values[:, :count], ids[:, :count]


_Drawn = tuple[torch.Tensor, torch.Tensor | None]


def _invert(mass: torch.Tensor, uniforms: torch.Tensor, placed: bool) -> _Drawn:
    """Index [n, 1] where the rising `mass` [n, k] first exceeds `uniforms` [n, 1] of its total, and where it is to be
    placed, as shares of the total what `mass` is before it and there, [n, 2]."""
    total = mass[:, -1:].contiguous()
    index = torch.searchsorted(mass, uniforms * total, right=True)
    # Rounding may lift the product to the total itself; the last entry with any weight is where the total is reached.
    # NaN exceeds nothing.
    index = torch.minimum(index, torch.searchsorted(mass, total)).clamp_(max=mass.shape[1] - 1)
    if not placed:
        return index, None
    edges = mass.gather(1, torch.cat((index - 1, index), 1).clamp_(min=0))
    edges[:, :1].masked_fill_(index == 0, 0.0)
    return index, edges.div_(total)


def _invert_large(weights: torch.Tensor, uniforms: torch.Tensor, placed: bool) -> _Drawn:
    """`_invert` of the running sum of `weights` [n, k], in two levels: a running sum of all of them takes a CPU longer
    than everything else together."""
    count = weights.shape[1]
    if count <= _SMALL_VOCAB:
        return _invert(weights.cumsum(-1), uniforms, placed)
    whole = count // _GROUP * _GROUP
    sums = weights[:, :whole].view(len(weights), -1, _GROUP).sum(-1)
    if whole < count:
        sums = torch.cat((sums, weights[:, whole:].sum(-1, keepdim=True)), 1)
    mass = sums.cumsum(-1)
    group, _ = _invert(mass, uniforms, False)
    before = (mass - sums).gather(1, group)
    within = sums.gather(1, group)
    index = group * _GROUP + torch.arange(_GROUP, device=weights.device)
    inside = weights.gather(1, index.clamp(max=count - 1)).masked_fill(index >= count, 0.0)
    share = (uniforms * mass[:, -1:] - before) / within
    place, edges = _invert(inside.cumsum(-1), share.clamp(0.0, 1.0), placed)
    return group * _GROUP + place, None if edges is None else (before + edges * within) / mass[:, -1:]
