"""Products with few columns: against the same sums in float64, in every layout, and where they are left to torch."""

import logging
import subprocess

import pytest
import torch
from ppo_helpers import tiny
from torch import nn

from rlhf.models import kernels, narrow, native
from rlhf.ppo.sampler import Request, Sampler, SamplingParameters


@pytest.fixture
def compiled():
    """Kernels are compiled; narrow products alone are made here, so nothing else is."""
    kernels.compile_kernels(True)
    yield
    kernels.compile_kernels(False)


@pytest.fixture
def calls(monkeypatch):
    """The (m, k, n) of each product that our own kernel made."""
    made, multiply = [], narrow._multiply

    def recorded(matrix, x, out):
        made.append((*matrix.shape, x.shape[1]))
        multiply(matrix, x, out)

    monkeypatch.setattr(narrow, "_multiply", recorded)
    return made


def numbers(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("rows", [1, 5, 6, 7, 12, 301])
@pytest.mark.parametrize("columns", [1, 7, 8, 9, 16, 23, 24, 64])
def test_products_are_those_of_float64(rows, columns, compiled, calls):
    for inner in (1, 17, 64):
        matrix, x = numbers(rows, inner), numbers(inner, columns)
        exact = (matrix.double() @ x.double()).float()
        with torch.inference_mode():
            torch.testing.assert_close(narrow.times(matrix, x), exact, rtol=0, atol=3e-5)
            torch.testing.assert_close(narrow.times(matrix, x.T.contiguous().T), exact, rtol=0, atol=3e-5)
    assert len(calls) == 6


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 8, 13])
def test_a_layer_is_applied_to_rows(rows, bias, compiled, calls):
    layer, x = nn.Linear(20, 31, bias=bias), numbers(rows, 20)
    expected = x.double() @ layer.weight.double().T + (layer.bias if bias else 0)
    with torch.inference_mode():
        result = narrow.linear(layer, x)
    torch.testing.assert_close(result, expected.float().detach(), rtol=0, atol=1e-5)
    assert result.is_contiguous()
    assert calls


def test_a_columns_result_does_not_depend_on_its_company(compiled):
    matrix, x = numbers(50, 64), numbers(64, 64)
    with torch.inference_mode():
        alone = torch.cat([narrow.times(matrix, x[:, [column]]) for column in range(64)], 1)
        assert torch.equal(alone, narrow.times(matrix, x))


def test_what_the_kernel_cannot_do_is_left_to_torch(compiled, calls):
    matrix, x = numbers(10, 20), numbers(20, 8)
    layer = nn.Linear(20, 10)
    with torch.inference_mode():
        assert torch.equal(narrow.times(matrix.double(), x.double()), matrix.double() @ x.double())
        assert torch.equal(narrow.times(matrix.T, numbers(10, 8)), matrix.T @ numbers(10, 8))  # its rows have gaps
        assert narrow.times(matrix, numbers(20, narrow.MOST_COLUMNS + 1)).shape == (10, narrow.MOST_COLUMNS + 1)
        assert narrow.linear(nn.Sequential(layer), x.T).shape == (8, 10)
        with pytest.raises(RuntimeError, match="dtype"):
            narrow.times(matrix, x.bfloat16())
        with pytest.raises(RuntimeError, match="shapes"):
            narrow.times(matrix, x[:-1])
        kernels.compile_kernels(False)
        narrow.times(matrix, x)
        kernels.compile_kernels(True)
    assert narrow.linear(layer, x.T).requires_grad  # outside of inference mode gradients are owed
    assert calls == []


def test_a_compiler_that_fails_costs_speed_alone(compiled, monkeypatch, caplog):
    def fails(command, **options):
        raise subprocess.CalledProcessError(1, command, stderr="unrecognised option -fopenmp")

    narrow._kernel.cache_clear()
    monkeypatch.setattr(native.subprocess, "run", fails)
    matrix, x = numbers(10, 20), numbers(20, 8)
    with torch.inference_mode(), caplog.at_level(logging.WARNING):
        assert torch.equal(narrow.times(matrix, x), matrix @ x)
        narrow.times(matrix, x)
    narrow._kernel.cache_clear()
    assert ["unrecognised option -fopenmp" in record.message for record in caplog.records] == [True]


def test_the_sampler_says_the_same_with_it(compiled, calls):
    parameters = SamplingParameters(stop_token_ids=(1,), batch_size=3)
    requests = [Request(prompt_ids=[2 + i, 3], key=i, max_tokens=9) for i in range(5)]

    def said():
        return Sampler(tiny().eval(), parameters)(requests)

    own = said()
    count = len(calls)
    kernels.compile_kernels(False)
    plain = said()
    assert count == len(calls) > 0
    assert [one.token_ids for one in own] == [one.token_ids for one in plain]
    for one, other in zip(own, plain, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
