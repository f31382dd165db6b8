"""The halves of a block against their formulas in float64, in value and gradient, with every kind of weight."""

from dataclasses import dataclass

import pytest
import torch
from cpu_helpers import BFLOAT16, near, needs_bfloat16, numbers

from rlhf.cpu import blocks
from rlhf.cpu.weights import AttentionInput, Block, BlockOutput, Projection

NEAR = {torch.float32: 3e-6, torch.bfloat16: 1e-2}  # of the norm of what is compared


@dataclass(frozen=True)
class Sizes:
    """Of a block: D, H * d, K * d, I."""

    size: int
    heads: int
    keys: int
    wide: int


NARROW, ODD, WIDE = Sizes(32, 32, 16, 48), Sizes(48, 80, 16, 112), Sizes(96, 96, 96, 272)


def projection(out, size, seed, rank=0, bias=False, dtype=torch.float32):
    """A random projection, to be trained."""
    weight = (numbers(out, size, seed=seed) / size**0.5).to(dtype)
    tensors = [weight, numbers(out, seed=seed) if bias else None, None, None]
    if rank:
        tensors[2:] = numbers(rank, size, seed=seed) / size**0.5, numbers(out, rank, seed=seed)
    return Projection(*(None if tensor is None else tensor.requires_grad_() for tensor in tensors), 0.5)


def block(sizes, rank=0, bias=False, dtype=torch.float32):
    """The weights of a block; biases only before attention."""
    shapes = [
        (sizes.heads, sizes.size), (sizes.keys, sizes.size), (sizes.keys, sizes.size), (sizes.size, sizes.heads),
        (sizes.wide, sizes.size), (sizes.wide, sizes.size), (sizes.size, sizes.wide),
    ]  # fmt: skip
    made = [projection(*shape, n, rank, bias and n < 3, dtype) for n, shape in enumerate(shapes)]
    norms = [(1 + 0.3 * numbers(sizes.size, seed=n)).requires_grad_() for n in range(2)]
    query, key, value, output, gate, up, down = made
    return Block(AttentionInput(norms[0], 1e-5, 16, query, key, value),
                 BlockOutput(output, norms[1], 1e-5, gate, up, down))  # fmt: skip


def tensors_of(half):
    parts = [tensor for by in half.projections for tensor in by[:4]]
    return [half.norm, *(tensor for tensor in parts if tensor is not None)]


def plain_norm(x, weight):
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()


def plain(by, x):
    """x W' + b + s (x A') B'."""
    y = x @ by.weight.double().T
    if by.bias is not None:
        y = y + by.bias.double()
    return y if by.down is None else y + by.scale * (x @ by.down.double().T) @ by.up.double().T


def plain_input(half, x):
    normed = plain_norm(x, half.norm)
    return torch.cat([plain(by, normed) for by in half.projections], 1)


def plain_output(half, x, attended):
    middle = x + plain(half.output, attended)
    normed = plain_norm(middle, half.norm)
    gate = plain(half.gate, normed)
    return middle + plain(half.down, gate * torch.sigmoid(gate) * plain(half.up, normed))


def ours_and_exact(block, sizes, tokens, dtype):
    """Values of both halves, and the gradients of what they are given and of what is trained."""
    x, attended = 2 * numbers(tokens, sizes.size), numbers(tokens, sizes.heads).to(dtype)
    found = []
    for exact in (False, True):
        wide = torch.float64 if exact else torch.float32
        given = x.to(wide).requires_grad_(), attended.to(torch.float64 if exact else dtype).requires_grad_()
        if exact:
            products, out = plain_input(block.input, given[0]), plain_output(block.output, *given)
        else:
            products = blocks.attention_input(given[0], block.input, dtype)
            out = blocks.block_output(*given, block.output, dtype)
        upstream = [numbers(*y.shape, seed=9).to(y.dtype) for y in (products, out)]
        trained = [[t for t in tensors_of(half) if t.requires_grad] for half in block]
        first = torch.autograd.grad(products, [given[0], *trained[0]], upstream[0])
        found.append([products, out, *first, *torch.autograd.grad(out, [*given, *trained[1]], upstream[1])])
    return found


@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16])
@pytest.mark.parametrize(("rank", "bias"), [(0, False), (0, True), (3, False), (16, True), (40, False)])
@pytest.mark.parametrize(
    ("sizes", "tokens"), [(NARROW, 1), (NARROW, 8), (NARROW, 600), (ODD, 7), (ODD, 49), (WIDE, 70), (WIDE, 258)]
)
def test_values_and_gradients_are_those_of_float64(sizes, tokens, rank, bias, dtype):
    weights = block(sizes, rank, bias)
    assert blocks.can_run(weights, dtype)
    for got, expected in zip(*ours_and_exact(weights, sizes, tokens, dtype), strict=True):
        near(got, expected, NEAR[dtype])


@needs_bfloat16
@pytest.mark.parametrize("rank", [0, 3])
def test_weights_may_be_in_bfloat16_themselves(rank):
    ours, exact = ours_and_exact(block(ODD, rank, dtype=torch.bfloat16), ODD, 33, torch.bfloat16)
    assert {got.dtype for got in ours} == {torch.float32, torch.bfloat16}
    for got, expected in zip(ours, exact, strict=True):
        near(got, expected, 1e-2)


def frozen_but(weights, *trained):
    for tensor in (*tensors_of(weights.input), *tensors_of(weights.output)):
        tensor.requires_grad_(False)
    for tensor in trained:
        tensor.requires_grad_()


@pytest.mark.parametrize(
    "trained",
    [
        pytest.param(lambda b: [b.input.key.up], id="B of the keys"),
        pytest.param(lambda b: [b.input.value.down, b.output.down.down], id="A of values and down"),
        pytest.param(lambda b: [b.output.gate.weight, b.input.query.weight], id="some weights"),
        pytest.param(lambda b: [b.output.up.up, b.output.output.up], id="B of up and output"),
        pytest.param(lambda b: [b.input.query.bias], id="a bias"),
        pytest.param(lambda b: [], id="nothing"),
    ],
)
def test_gradients_are_made_for_what_is_trained_alone(trained):
    weights = block(ODD, 3, bias=True)
    frozen_but(weights, *trained(weights))
    for got, expected in zip(*ours_and_exact(weights, ODD, 50, torch.float32), strict=True):
        near(got, expected, NEAR[torch.float32])
    x = numbers(50, ODD.size).requires_grad_()
    out = blocks.block_output(x, blocks.attention_input(x, weights.input, torch.float32)[:, : ODD.heads],
                              weights.output, torch.float32)  # fmt: skip
    out.sum().backward()
    learnt = [t for half in weights for t in tensors_of(half) if t.grad is not None]
    assert {id(t) for t in learnt} <= {id(t) for t in trained(weights)}


@pytest.mark.parametrize("rank", [0, 3])
def test_numbers_do_not_depend_on_threads_or_on_what_is_kept(rank):
    weights, before, made = block(WIDE, rank), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            made.append(ours_and_exact(weights, WIDE, 130, torch.float32)[0])
    finally:
        torch.set_num_threads(before)
    for other in made[1:]:
        assert all(torch.equal(one, two) for one, two in zip(made[0], other, strict=True))
    x, attended = 2 * numbers(130, WIDE.size), numbers(130, WIDE.heads)
    with torch.no_grad():
        assert torch.equal(blocks.attention_input(x, weights.input, torch.float32), made[0][0])
        assert torch.equal(blocks.block_output(x, attended, weights.output, torch.float32), made[0][1])


def without_adapters(half):
    names = [name for name, part in half._asdict().items() if isinstance(part, Projection)]
    return half._replace(**{name: getattr(half, name)._replace(down=None, up=None) for name in names})


@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16])
def test_an_adapter_that_does_nothing_yet_changes_no_bit(dtype):
    weights = block(ODD, 5)
    for half in weights:
        for by in half.projections:
            by.up.data.zero_()
    x, attended = numbers(50, ODD.size), numbers(50, ODD.heads).to(dtype)
    bare = [without_adapters(half) for half in weights]
    ours = blocks.attention_input(x, weights.input, dtype), blocks.block_output(x, attended, weights.output, dtype)
    others = blocks.attention_input(x, bare[0], dtype), blocks.block_output(x, attended, bare[1], dtype)
    assert all(torch.equal(one, other) for one, other in zip(ours, others, strict=True))


def test_rows_do_not_depend_on_their_company():
    weights, x = block(ODD, 3), numbers(100, ODD.size)
    together = blocks.attention_input(x, weights.input, torch.float32)
    for row in (0, 47, 48, 99):
        assert torch.equal(blocks.attention_input(x[row : row + 1], weights.input, torch.float32)[0], together[row])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda b: replace_input(b, norm=b.input.norm.double()), id="norm in float64"),
        pytest.param(lambda b: replace_input(b, key=Projection(numbers(32, 16).T)), id="gaps"),
        pytest.param(lambda b: replace_input(b, key=projection(18, 32, 0)), id="rows not of sixteens"),
        pytest.param(lambda b: replace_input(b, key=projection(16, 32, 0, dtype=torch.bfloat16)), id="mixed"),
        pytest.param(lambda b: replace_input(b, key=Projection(numbers(16, 32).to("meta"))), id="elsewhere"),
        pytest.param(lambda b: replace_input(b, key=Projection(numbers(16, 32), numbers(16).double())), id="bias"),
        pytest.param(
            lambda b: b._replace(output=b.output._replace(gate=projection(48, 32, 0, bias=True))), id="bias of a gate"
        ),
    ],
)  # fmt: skip
def test_what_the_code_cannot_run_is_refused(change):
    weights = block(NARROW)
    assert blocks.can_run(weights, torch.float32)
    assert not blocks.can_run(change(weights), torch.float32)


def replace_input(weights, **changes):
    return weights._replace(input=weights.input._replace(**changes))


def test_weights_of_other_precisions_are_refused():
    assert not blocks.can_run(block(NARROW, dtype=torch.float64), torch.float64)
    assert not blocks.can_run(block(NARROW, dtype=torch.bfloat16), torch.float32)
    rounded, weights = block(NARROW, dtype=torch.bfloat16), block(NARROW)
    assert blocks.can_run(rounded, torch.bfloat16)
    assert blocks.can_run(weights, torch.bfloat16)
    assert not blocks.can_run(replace_input(weights, key=rounded.input.key), torch.bfloat16)  # one is none for all
