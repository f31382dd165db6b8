"""Compiled attention: against plain formulas in float64, in value and gradient, and where it is left to torch."""

import logging

import pytest
import torch
from native_helpers import needs_bfloat16
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf.cpu import fast_trunk, kernels, native_attention
from rlhf.cpu.attention import causal_attention, turned_heads
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


def packed(lengths, shared):
    ids = torch.randint(2, 50, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(0))
    ids[:, :shared] = 1
    return PackedRows.from_padded(ids, torch.tensor(lengths))


def case(name, dtype, spread=1.0):
    """Rows, heads of random numbers, their angles, and the gradient of what comes out."""
    lengths, shared, heads, keys, size = SHAPES[name]
    rows, generator = packed(lengths, shared), torch.Generator().manual_seed(1)
    n = len(rows.input_ids)
    tensors = [spread * torch.randn(n, count * size, generator=generator) for count in (heads, keys, keys, heads)]
    angles = rows.positions[:, None, None] * torch.logspace(0, -3, size // 2)
    return rows, [tensor.to(dtype) for tensor in tensors], (angles.cos(), angles.sin()), size


def by_torch(tensors, angles, rows, size, dtype):
    """What `attention` makes of it without compiled code, and the gradients, with products in a precision."""
    query, key, value, grad = (tensor.to(dtype).requires_grad_() for tensor in tensors)
    wide = torch.promote_types(dtype, torch.float32)
    heads = turned_heads(query, key, value, *(part.to(wide) for part in angles), rows, size)
    out = causal_attention(*heads, rows, dtype)
    return [out, *torch.autograd.grad(out, (query, key, value), grad.detach())]


def by_ours(tensors, angles, rows, size):
    *apart, grad = tensors
    heads = torch.cat(apart, 1).requires_grad_()
    out = native_attention.attention(heads, *angles, rows, grad.shape[1] // size, size)
    (learnt,) = torch.autograd.grad(out, heads, grad)
    return [out, *learnt.split([part.shape[1] for part in apart], 1)]


@pytest.mark.parametrize("spread", [1.0, 8.0])  # 8: nearly all weight on one key
@pytest.mark.parametrize("name", SHAPES)
def test_values_and_gradients_are_those_of_float64(name, spread, compiled):
    rows, tensors, angles, size = case(name, torch.float32, spread)
    assert native_attention.can_run(torch.float32, size, rows)
    exact = by_torch(tensors, angles, rows, size, torch.float64)
    torchs = by_torch(tensors, angles, rows, size, torch.float32)  # large scores leave fewer digits to anyone
    scale = max(float(expected.detach().norm()) for expected in exact)  # one token's query and key learn nothing
    for got, other, expected in zip(by_ours(tensors, angles, rows, size), torchs, exact, strict=True):
        assert got.dtype == torch.float32
        assert (got.double() - expected).norm() <= 2 * (other.double() - expected).norm() + 1e-6 * scale


@needs_bfloat16
@pytest.mark.parametrize("name", SHAPES)
def test_bfloat16_is_as_near_to_float64_as_torchs_operations(name, compiled):
    rows, tensors, angles, size = case(name, torch.bfloat16)
    exact = by_torch(tensors, angles, rows, size, torch.float64)
    torchs = by_torch(tensors, angles, rows, size, torch.bfloat16)
    for got, other, expected in zip(by_ours(tensors, angles, rows, size), torchs, exact, strict=True):
        assert got.dtype == torch.bfloat16
        assert (got.double() - expected).norm() <= 1.5 * (other.double() - expected).norm() + 1e-3 * expected.norm()


@pytest.mark.parametrize("name", ["common beginnings", "vectors and one more"])
def test_numbers_do_not_depend_on_threads_or_company(name, compiled):
    rows, tensors, angles, size = case(name, torch.float32)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(by_ours(tensors, angles, rows, size))
    torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(result, results[0], strict=True))
    last = rows.grid[-1, : rows.lengths[-1]]
    alone = PackedRows.from_rows([rows.input_ids[last].tolist()])
    own = [tensor[last] for tensor in tensors]
    assert torch.equal(by_ours(own, [part[last] for part in angles], alone, size)[0], results[0][0][last])


def test_a_token_sees_nothing_that_comes_after_it(compiled):
    rows, tensors, angles, size = case("vectors and one more", torch.float32)
    before = by_ours(tensors, angles, rows, size)[0]
    place = rows.grid[3, 20]
    for tensor in tensors[:3]:
        tensor[place] = 9.0
    after = by_ours(tensors, angles, rows, size)[0]
    untouched = torch.ones(len(before), dtype=torch.bool).index_fill_(0, rows.grid[3, 20:33], False)
    assert torch.equal(after[untouched], before[untouched])
    assert (after[~untouched] != before[~untouched]).any(1).all()


def llama(head_dim=32, **options):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{
        "vocab_size": 50, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": head_dim, "initializer_range": 0.2, **options,
    }))  # fmt: skip


@pytest.fixture
def calls(monkeypatch):
    """How often compiled attention was called, forward (False) and backward (True)."""
    made, run = [], native_attention._run

    def recorded(rows, queries, size, backward, *tensors, **more):
        made.append(backward)
        run(rows, queries, size, backward, *tensors, **more)

    monkeypatch.setattr(native_attention, "_run", recorded)
    return made


def test_a_trunk_says_and_learns_the_same_with_it(compiled, calls):
    """All weights' gradients, and the keys and values that a decoder is given."""
    model, rows = llama(), packed([9, 30, 17], 4)
    read = torch.arange(len(rows.input_ids))
    upstream = torch.randn(len(read), 64, generator=torch.Generator().manual_seed(2))

    def result(trunk):
        kept = {}
        hidden = fast_trunk.run(trunk, rows, read, lambda number, *heads: kept.update({number: heads}))
        weights = torch.autograd.grad((hidden * upstream).sum(), [*trunk.parameters()])
        return [hidden, *weights, *(part.to(hidden.dtype) for number in range(2) for part in kept[number])]

    ours = result(model.model)
    assert calls == [False] * 2 + [True] * 2
    exact = result(model.double().model)
    assert len(calls) == 4  # float64 is left to torch
    for got, expected in zip(ours, exact, strict=True):
        assert (got.double() - expected).norm() <= 3e-6 * expected.norm()


@pytest.mark.parametrize(
    ("dtype", "size", "longest"),
    [
        pytest.param(torch.float64, 32, 30, id="float64"),
        pytest.param(torch.float16, 32, 30, id="float16"),
        pytest.param(torch.float32, 48, 30, id="odd heads"),
        pytest.param(torch.float32, 32, native_attention.LONGEST + 1, id="long rows"),
    ],
)
def test_what_the_code_cannot_run_is_left_to_torch(dtype, size, longest, compiled):
    assert native_attention.can_run(torch.float32, 32, packed([30], 0))
    assert not native_attention.can_run(dtype, size, packed([longest], 0))


def test_nothing_is_compiled_unless_it_is_wanted(calls):
    assert not native_attention.can_run(torch.float32, 32, packed([30], 0))
    rows = packed([9, 4], 0)
    fast_trunk.run(llama().model, rows, rows.last)
    assert calls == []


def test_bfloat16_is_left_to_torch_where_the_processor_does_not_multiply_it(compiled, monkeypatch):
    class Library:
        def multiplies_bfloat16(self):
            return False

    monkeypatch.setattr(native_attention, "_library", Library)
    assert native_attention.can_run(torch.float32, 32, packed([30], 0))
    assert not native_attention.can_run(torch.bfloat16, 32, packed([30], 0))


def test_a_compiler_that_fails_costs_speed_alone(failing_compiler, caplog):
    with caplog.at_level(logging.WARNING):
        assert not native_attention.can_run(torch.float32, 32, packed([30], 0))
        assert not native_attention.can_run(torch.float32, 32, packed([30], 0))
    assert ["unrecognised option -fopenmp" in record.message for record in caplog.records] == [True]


def test_keys_are_turned_for_the_decoder_as_they_are_in_attention(compiled):
    """The decoder's own keys are turned by `kernels.rotate`; here one block's are taken from both ways."""
    rows, tensors, (cos, sin), size = case("short rows", torch.float32)
    turned = turned_heads(*tensors[:3], cos, sin, rows, size)[1]
    assert torch.equal(rows.split_heads(kernels.rotate(tensors[1].view(-1, 2, size), cos, sin, torch.float32)), turned)
