"""What the host learns of each row of logits: its token, and what decides whether the step goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .sampling import Sampler

if TYPE_CHECKING:
    from frtool.models.load import LoadedModel

    from .options import EngineOptions

TOKEN, LOGPROB, END, REWARD, LOW, HIGH = range(6)
"""Rows of `values`."""
READINGS = 6
_MOST_ENTRIES = 1 << 23
"""Of logits that torch's operations read at once. Sorted for top-p they are there some 14 times in 4 bytes: half a
gigabyte, where 256 rows of 128,256 tokens took 1.8. Each operation still has 32 MiB to write, which keeps a GPU busy
for ten times as long as the start of one more takes."""


class Readout:
    """Samples and reads rows of logits without a word to the host, so that it can be part of a captured graph.

    Graphs may share an instance as long as they run one after the other: its working memory never moves.
    """

    def __init__(self, loaded: LoadedModel, options: EngineOptions, rows: int) -> None:
        """`rows` is how many one call reads at most."""
        marks = loaded.reward_tokens
        suppressed = (marks.query, marks.good, marks.bad) if marks else ()
        device = loaded.device
        self._rows = min(rows, max(_MOST_ENTRIES // loaded.vocab_size, 1))
        """That are read at once."""
        self._sampler = Sampler(options, device, suppressed=suppressed, rows=self._rows)
        self._suppressed = torch.tensor(sorted(suppressed), dtype=torch.long, device=device)
        self._ends = torch.tensor(sorted(loaded.eos_ids), dtype=torch.long, device=device)
        self._labels = torch.tensor([marks.good, marks.bad] if marks else [], dtype=torch.long, device=device)
        plain = options.top_k == 0 and options.top_p >= 1 and options.min_p == 0
        self._fused = device.type == "cuda" and plain

    def __call__(
        self, logits: torch.Tensor, uniforms: torch.Tensor, values: torch.Tensor, tokens: torch.Tensor
    ) -> None:
        """Fill `values` float32 [6, n] and `tokens` int64 [n] from `logits` [n, vocab].

        `uniforms` float32 [n] as in `noise`. The rows of `values`: the token; its log-probability under the model
        itself, NaN where a logit is NaN; the probability that the path ends here; of the two reward labels, the
        probability of the good one; lower and upper edge of the token's interval, see `Sampler.sample`.
        """
        if self._fused:
            # Triton does not exist on every platform.
            from frtool.kernels.readout_kernel import read_rows

            sampler = self._sampler
            temperature = 0.0 if sampler.greedy else sampler.temperature
            read_rows(logits, uniforms, temperature, self._suppressed, self._ends, self._labels, values, tokens)
            return
        parts = -(-len(logits) // self._rows)
        for part in zip(
            logits.chunk(parts), uniforms.chunk(parts), values.chunk(parts, 1), tokens.chunk(parts), strict=True
        ):
            self._read(*part)

    def _read(self, logits: torch.Tensor, uniforms: torch.Tensor, values: torch.Tensor, tokens: torch.Tensor) -> None:
        """`__call__` for rows that are few enough, in torch's own operations."""
        logits = logits.float()
        drawn, logprobs, intervals = self._sampler.sample(logits, uniforms)
        tokens.copy_(drawn)
        values[TOKEN].copy_(drawn)
        values[LOGPROB].copy_(logprobs)
        values[LOW:].copy_(intervals.T)
        if len(self._ends):
            values[END].copy_(torch.softmax(logits, -1).index_select(1, self._ends).sum(-1))
        if len(self._labels):
            values[REWARD].copy_(torch.softmax(logits.index_select(1, self._labels), -1)[:, 0])
