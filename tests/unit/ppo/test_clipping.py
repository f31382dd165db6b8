"""A step with clipped gradients, whoever scales them."""

import pytest
import torch

from rlhf.ppo.clipping import clipped_step

OPTIMIZERS = {
    "fused AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, fused=True),
    "fused Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.1, fused=True),
    "fused SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, fused=True),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, foreach=False),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
}


def parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(*shape, generator=generator, dtype=dtype)) for shape in ((3, 5), (7,))]


def steps(make, limit, dtype=torch.float32, sizes=(4.0, 0.1, 9.0)):
    """Parameters behind steps with gradients of these sizes, and the norms of the gradients that were applied."""
    trained, norms = parameters(dtype), []
    optimizer = make(trained)
    generator = torch.Generator().manual_seed(1)
    for size in sizes:
        for parameter in trained:
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=dtype) * size
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in trained])
        clipped_step(optimizer, trained, norm, limit)
        norms.append((float(norm), float(torch.nn.utils.get_total_norm([parameter.grad for parameter in trained]))))
    return trained, norms


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_step_is_that_of_clipped_gradients(name, dtype):
    def clipping_itself(trained):
        def clip(*_):
            torch.nn.utils.clip_grad_norm_(trained, 1.0)

        optimizer = OPTIMIZERS[name](trained)
        optimizer.register_step_pre_hook(clip)
        return optimizer

    got, norms = steps(OPTIMIZERS[name], 1.0, dtype)
    expected, _ = steps(clipping_itself, None, dtype)
    for mine, theirs, before in zip(got, expected, parameters(dtype), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(mine, before, atol=1e-2)
    assert [applied for _, applied in norms] == pytest.approx([1.0, norms[1][0], 1.0], rel=1e-5)
    assert norms[1][0] < 1.0 < norms[0][0]


def test_a_smaller_gradient_is_left_alone():
    optimizer_of = OPTIMIZERS["fused AdamW"]
    _, norms = steps(optimizer_of, 2.0, sizes=(4.0, 0.1))
    assert norms[1][0] == norms[1][1]
    (mine, *_), _ = steps(optimizer_of, None)
    (theirs, *_), _ = steps(optimizer_of, 1e9)
    assert torch.equal(mine, theirs)
