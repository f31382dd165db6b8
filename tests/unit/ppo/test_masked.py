"""Masked means and whitening against plain formulas on the values that count."""

import math

import pytest
import torch

from rlhf.ppo.masked import masked_mean, masked_whiten

NINE = torch.tensor([[1.2, 1.3, 1.4], [1.5, 1.6, 1.7], [1.8, 1.9, 2.0]], dtype=torch.float64)


def ragged(seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(5, 7, generator=generator, dtype=torch.float64) * 3 + 2
    mask = torch.arange(7)[None] < torch.tensor([7, 1, 4, 2, 6])[:, None]
    return values, mask


def test_oracle_21_whitening_keeps_the_mean_or_shifts_it():
    everything = torch.ones_like(NINE, dtype=torch.bool)
    # mean 1.6, biased variance 0.01 * (81 - 1) / 12
    expected = (NINE - 1.6) / math.sqrt(0.8 / 12)
    kept = masked_whiten(NINE, everything, shift_mean=False)
    torch.testing.assert_close(kept, expected + 1.6, atol=1e-6, rtol=0)
    assert kept[0, 0].item() == pytest.approx(0.0508, abs=5e-5)
    assert kept[2, 2].item() == pytest.approx(3.1492, abs=5e-5)
    shifted = masked_whiten(NINE, everything, shift_mean=True)
    torch.testing.assert_close(shifted, expected, atol=1e-6, rtol=0)


def test_mean_and_whitening_read_the_mask_alone():
    values, mask = ragged()
    chosen = values[mask]
    assert masked_mean(values, mask).item() == pytest.approx(float(chosen.mean()), abs=1e-14)
    whitened = masked_whiten(values, mask, shift_mean=True)
    expected = (chosen - chosen.mean()) / chosen.std(correction=0)
    torch.testing.assert_close(whitened[mask], expected, atol=1e-8, rtol=0)
    assert (whitened[~mask] == 0).all()
    assert (masked_whiten(values, mask, shift_mean=False)[~mask] == 0).all()


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -1e30])
def test_oracle_11_garbage_under_the_mask_does_not_reach_values_or_gradients(garbage):
    values, mask = ragged()
    results = []
    for given in (values, torch.where(mask, values, garbage)):
        given = given.clone().requires_grad_()
        outputs = [masked_mean(given, mask), *(masked_whiten(given, mask, shift_mean=s) for s in (True, False))]
        (outputs[0] + outputs[1].pow(3).sum() + outputs[2].pow(2).sum()).backward()
        results.append([output.detach() for output in outputs] + [given.grad])
    for clean, dirty in zip(*results, strict=True):
        assert torch.equal(clean, dirty)


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_stays_finite_without_variance(shift_mean):
    mask = torch.tensor([[True, False, False], [True, True, False]])
    constant = masked_whiten(torch.full((2, 3), 2.5), mask, shift_mean=shift_mean)
    torch.testing.assert_close(constant, torch.where(mask, 0.0 if shift_mean else 2.5, 0.0), atol=1e-4, rtol=0)
    single = masked_whiten(torch.tensor([[7.0, 8.0]]), torch.tensor([[True, False]]), shift_mean=shift_mean)
    assert single.tolist() == [[0.0 if shift_mean else 7.0, 0.0]]


def test_an_empty_mask_is_refused():
    with pytest.raises(ValueError, match="the mask is empty"):
        masked_mean(NINE, torch.zeros_like(NINE, dtype=torch.bool))
