"""Random numbers that depend on a seed and a name alone, for algorithms that draw."""

from __future__ import annotations

import math
import struct
from hashlib import blake2b
from statistics import NormalDist

_NORMAL = NormalDist()


class Stream:
    """The numbers of one name under one seed: a counter-based generator, whose block i is BLAKE2b(seed, name, i).

    So the draws at one node do not depend on those at another, nor on when either are made.
    """

    __slots__ = ("_block", "_name", "_numbers")

    def __init__(self, seed: int, name: str) -> None:
        self._name = f"{seed}/{name}/".encode()
        self._block = 0
        self._numbers: list[int] = []

    def uniform(self) -> float:
        """In (0, 1), both ends excluded; 52 bits."""
        if not self._numbers:
            digest = blake2b(self._name + str(self._block).encode()).digest()
            self._numbers = list(struct.unpack("<8Q", digest))
            self._block += 1
        return ((self._numbers.pop() >> 12) + 0.5) / 2**52

    def normal(self) -> float:
        """Of mean 0 and variance 1, by inversion."""
        return _NORMAL.inv_cdf(self.uniform())

    def gumbel(self) -> float:
        """Standard Gumbel, -ln(-ln u)."""
        return -math.log(-math.log(self.uniform()))

    def log_gamma(self, shape: float) -> float:
        """Logarithm of a Gamma(shape, 1) variate; Marsaglia and Tsang 2000, with u^(1/shape) below shape 1."""
        if shape < 1:
            return self.log_gamma(shape + 1) + math.log(self.uniform()) / shape
        d = shape - 1 / 3
        c = 1 / math.sqrt(9 * d)
        while True:
            x = self.normal()
            root = 1 + c * x
            if root > 0 and math.log(self.uniform()) < x * x / 2 + d - d * root**3 + 3 * d * math.log(root):
                return math.log(d) + 3 * math.log(root)

    def beta(self, a: float, b: float) -> float:
        """Of Beta(a, b)."""
        odds = self.log_gamma(b) - self.log_gamma(a)
        return 1 / (1 + math.exp(odds)) if odds < 700 else 0.0
