"""Products whose factors are rounded."""

import pytest
import torch

from rlhf.cpu.rounding import rounded_factors


def test_rounded_factors_touch_float32_products_and_nothing_behind_them() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(64, 64, generator=generator) for _ in range(2))
    exact = one @ other
    with rounded_factors(True):
        assert (one @ other - exact).norm() / exact.norm() < 1e-2
    assert torch.equal(one @ other, exact)
    with pytest.raises(RuntimeError), rounded_factors(True):
        one @ other[:1]
    assert torch.equal(one @ other, exact)
    with rounded_factors(False):
        assert torch.equal(one @ other, exact)
