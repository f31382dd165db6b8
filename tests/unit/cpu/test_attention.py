"""Attention of packed rows against a literal loop over rows in float64, in value and gradient."""

import pytest
import torch
from cpu_helpers import near, needs_bfloat16, packed

from rlhf.cpu.attention import attention
from rlhf.packing.packed import PackedRows

SHAPES = {  # lengths of rows, tokens that all begin with, heads, heads of keys, size
    "one token": ([1], 0, 2, 2, 32),
    "short rows": ([5, 1, 8, 3], 0, 4, 2, 32),
    "vectors and one more": ([16, 17, 15, 33, 8, 9], 0, 3, 1, 64),
    "common beginnings": ([20, 11, 30, 9], 9, 6, 2, 64),
    "a whole row in common": ([16, 25, 16], 16, 2, 2, 32),
    "large heads": ([12, 40], 3, 2, 1, 96),
    "long rows": ([150, 70], 2, 2, 1, 32),
}


def case(name, dtype, spread=1.0):
    """Rows, heads of random numbers, the angles' cosines and sines, and the gradient of what comes out."""
    lengths, shared, heads, keys, size = SHAPES[name]
    rows, generator = packed(lengths, shared), torch.Generator().manual_seed(1)
    n = len(rows.input_ids)
    tensors = [spread * torch.randn(n, count * size, generator=generator) for count in (heads, keys, keys, heads)]
    angles = rows.positions[:, None, None] * torch.logspace(0, -3, size // 2)
    return rows, [tensor.to(dtype) for tensor in tensors], (angles.cos(), angles.sin()), size


def rotated(x, cos, sin):
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def literal(tensors, angles, rows, size, dtype):
    """Row by row, head by head; a token that several rows share is read in the first of them."""
    query, key, value, grad = (tensor.to(dtype).detach().requires_grad_() for tensor in tensors)
    cos, sin = (part.to(torch.promote_types(dtype, torch.float32)) for part in angles)
    turned = [rotated(x.view(len(x), -1, size).to(cos.dtype), cos, sin).to(dtype) for x in (query, key)]
    group, out = query.shape[1] // key.shape[1], torch.zeros_like(query).view(len(query), -1, size)
    done: set[int] = set()
    for tokens in (rows.grid[row, :length] for row, length in enumerate(rows.lengths)):
        mask = torch.full((len(tokens), len(tokens)), -torch.inf).triu(1)
        new = torch.tensor([token not in done for token in tokens.tolist()])
        done |= set(tokens.tolist())
        for head in range(out.shape[1]):
            scores = turned[0][tokens, head] @ turned[1][tokens, head // group].T / size**0.5
            weights = (scores.to(cos.dtype) + mask).softmax(-1).to(dtype)
            found = weights @ value.view(len(value), -1, size)[tokens, head // group]
            out = out.index_put((tokens[new], torch.tensor(head)), found[new])
    out = out.flatten(1)
    return [out, *torch.autograd.grad(out, (query, key, value), grad.detach())]


def ours(tensors, angles, rows, size):
    *apart, grad = tensors
    heads = torch.cat(apart, 1).requires_grad_()
    out = attention(heads, *angles, rows, grad.shape[1] // size, size)
    (learnt,) = torch.autograd.grad(out, heads, grad)
    return [out, *learnt.split([part.shape[1] for part in apart], 1)]


@pytest.mark.parametrize("spread", [1.0, 8.0])  # 8: nearly all weight on one key
@pytest.mark.parametrize("name", SHAPES)
def test_values_and_gradients_are_those_of_float64(name, spread):
    rows, tensors, angles, size = case(name, torch.float32, spread)
    exact = literal(tensors, angles, rows, size, torch.float64)
    torchs = literal(tensors, angles, rows, size, torch.float32)  # large scores leave fewer digits to anyone
    scale = max(float(expected.detach().norm()) for expected in exact)  # one token's query and key learn nothing
    for got, other, expected in zip(ours(tensors, angles, rows, size), torchs, exact, strict=True):
        assert got.dtype == torch.float32
        assert (got.double() - expected).norm() <= 2 * (other.double() - expected).norm() + 1e-6 * scale


@needs_bfloat16
@pytest.mark.parametrize("name", SHAPES)
def test_bfloat16_is_near_to_float64(name):
    rows, tensors, angles, size = case(name, torch.bfloat16)
    exact = literal(tensors, angles, rows, size, torch.float64)
    scale = max(float(expected.detach().norm()) for expected in exact)
    for got, expected in zip(ours(tensors, angles, rows, size), exact, strict=True):
        assert got.dtype == torch.bfloat16
        assert (got.double() - expected).norm() <= 1e-2 * scale


@pytest.mark.parametrize("name", ["common beginnings", "vectors and one more"])
def test_numbers_do_not_depend_on_threads_or_company(name):
    rows, tensors, angles, size = case(name, torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(ours(tensors, angles, rows, size))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(result, results[0], strict=True))
    last = rows.grid[-1, : rows.lengths[-1]]
    alone = PackedRows.from_rows([rows.input_ids[last].tolist()])
    own = [tensor[last] for tensor in tensors]
    assert torch.equal(ours(own, [part[last] for part in angles], alone, size)[0], results[0][0][last])


def test_a_token_sees_nothing_that_comes_after_it():
    rows, tensors, angles, size = case("vectors and one more", torch.float32)
    before = ours(tensors, angles, rows, size)[0]
    place = rows.grid[3, 20]
    for tensor in tensors[:3]:
        tensor[place] = 9.0
    after = ours(tensors, angles, rows, size)[0]
    untouched = torch.ones(len(before), dtype=torch.bool).index_fill_(0, rows.grid[3, 20:33], False)
    assert torch.equal(after[untouched], before[untouched])
    assert (after[~untouched] != before[~untouched]).any(1).all()


def test_values_alone_are_the_same_without_a_backward_pass():
    rows, tensors, angles, size = case("common beginnings", torch.float32)
    with torch.no_grad():
        out = attention(torch.cat(tensors[:3], 1), *angles, rows, tensors[0].shape[1] // size, size)
    near(out, literal(tensors, angles, rows, size, torch.float64)[0].detach(), 1e-6)
