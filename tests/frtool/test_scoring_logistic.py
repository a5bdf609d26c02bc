"""The logistic function is right, and the same bits in any company."""

from __future__ import annotations

import torch

from frtool.scoring.logistic import logistic


def test_values_are_those_of_the_formula():
    x = torch.linspace(-40, 40, 1001)
    expected = 1 / (1 + torch.exp(-x.double()))
    torch.testing.assert_close(logistic(x).double(), expected, rtol=1e-6, atol=1e-12)


def test_infinities_are_certain_and_nan_stays():
    values = logistic(torch.tensor([torch.inf, -torch.inf, torch.nan]))
    assert values[0] == 1
    assert values[1] < 1e-30
    assert values[2].isnan()


def test_a_value_depends_on_no_other():
    x = torch.randn(101, generator=torch.Generator().manual_seed(0))
    whole = logistic(x)
    for first in (0, 1, 50):
        for count in (1, 2, 7, 16, 33):
            part = slice(first, first + count)
            assert torch.equal(logistic(x[part].clone()), whole[part])
