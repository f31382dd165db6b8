"""Products in parts against the plain ones."""

import pytest
import torch

from rlhf.cpu import products
from rlhf.cpu.products import times


@pytest.fixture
def factors(monkeypatch: pytest.MonkeyPatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole numbers, whose products are exact, of a shape that is multiplied in three parts, the last a short one."""
    monkeypatch.setattr(products, "PART", 16)
    generator, rows = torch.Generator().manual_seed(0), 40 * torch.get_num_threads()
    x = torch.randint(-2, 3, (rows, 8), generator=generator).bfloat16()
    return x, torch.randint(-2, 3, (8, 600), generator=generator).bfloat16()


def test_products_in_parts_are_the_plain_ones(factors: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, matrix = factors
    wide = torch.ones(len(x), 700).bfloat16()
    times(x, matrix, wide[:, 50:650])
    torch.testing.assert_close(wide[:, 50:650], x @ matrix, rtol=0, atol=0)
    assert (wide[:, [*range(50), *range(650, 700)]] == 1).all()


def test_products_are_added_in_place(factors: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, matrix = factors
    for dtype in (torch.bfloat16, torch.float32):  # in parts and whole
        total = torch.ones(len(x), 600, dtype=dtype)
        times(x.to(dtype), matrix.to(dtype), total, add=True)
        torch.testing.assert_close(total, (x.float() @ matrix.float() + 1).to(dtype), rtol=0, atol=0)
