"""Log-probabilities of chosen tokens without ever holding a (tokens, vocabulary) tensor of the whole batch.

Logits are made in chunks, reduced at once, and made again in the backward pass. Used for old, new and reference
log-probabilities alike, so that all three have the same arithmetic.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlhf.ppo import head

CHUNK_ELEMENTS = 16 * 2**20  # logits held at once; 64 MiB in float32


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


def logprobs_and_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Plain formulas on logits that are already divided by the temperature.

    log p(y) = z_y - logsumexp(z);  H = logsumexp(z) - sum_v p_v z_v.

    Args:
        logits: (n, V).
        targets: (n,) token ids.

    Returns:
        Log-probabilities (n,) and entropies (n,), both in nats.
    """
    normaliser = logits.logsumexp(-1)
    chosen = logits.gather(-1, targets[:, None]).squeeze(-1)
    # A banned token has logit -inf and probability 0; where() keeps 0 * inf out of the sum.
    weighted = torch.where(logits == -torch.inf, 0.0, logits) * (logits - normaliser[:, None]).exp()
    return chosen - normaliser, normaliser - weighted.sum(-1)


class _LinearLogprobs(torch.autograd.Function):
    """`logprobs_and_entropy(hidden @ weight.T + bias)` in chunks; logits are recomputed in the backward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float,
                entropy: bool) -> tuple[Tensor, Tensor]:  # fmt: skip
        rows = max(1, CHUNK_ELEMENTS // weight.shape[0])
        dtype = _compute_dtype(hidden)
        normaliser = torch.empty(len(hidden), dtype=dtype, device=hidden.device)
        logprobs, entropies = torch.empty_like(normaliser), torch.zeros_like(normaliser)
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            logits = _logits(hidden[part], weight, bias, temperature, dtype)  # (rows, V)
            normaliser[part] = logits.logsumexp(-1)
            logprobs[part] = logits.gather(-1, targets[part, None]).squeeze(-1) - normaliser[part]
            if entropy:
                probabilities = (logits - normaliser[part, None]).exp_()
                entropies[part] = normaliser[part] - (probabilities * logits).sum(-1)
        ctx.save_for_backward(hidden, weight, bias, targets, normaliser, entropies)
        ctx.temperature, ctx.rows, ctx.entropy = temperature, rows, entropy
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, logprob_grad: Tensor, entropy_grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normaliser, entropies = ctx.saved_tensors
        dtype = normaliser.dtype
        hidden_grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        weight_grad = torch.zeros_like(weight, dtype=dtype) if ctx.needs_input_grad[1] else None
        bias_grad = torch.zeros_like(bias, dtype=dtype) if bias is not None and ctx.needs_input_grad[2] else None
        for start in range(0, len(hidden), ctx.rows):
            part = slice(start, start + ctx.rows)
            logits = _logits(hidden[part], weight, bias, ctx.temperature, dtype).sub_(normaliser[part, None])
            # With z the logits: d log p(y) / dz = onehot(y) - p;  dH / dz = -p (log p + H).
            scale = -logprob_grad[part, None]
            if ctx.entropy:
                scale = scale - entropy_grad[part, None] * (logits + entropies[part, None])
            grad = logits.exp_().mul_(scale)
            grad.scatter_add_(-1, targets[part, None], logprob_grad[part, None])
            grad.div_(ctx.temperature)
            if hidden_grad is not None:
                hidden_grad[part] = (grad @ weight.to(dtype)).to(hidden.dtype)
            if weight_grad is not None:
                weight_grad.addmm_(grad.T, hidden[part].to(dtype))
            if bias_grad is not None:
                bias_grad += grad.sum(0)
        return (
            hidden_grad,
            None if weight_grad is None else weight_grad.to(weight.dtype),
            None if bias_grad is None else bias_grad.to(bias.dtype),
            None,
            None,
            None,
        )


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, dtype: torch.dtype) -> Tensor:
    logits = nn.functional.linear(hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
    return logits.div_(temperature) if temperature != 1 else logits


def _chunk_through_module(
    policy: nn.Module, hidden: Tensor, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    logits = head.scale_logits(policy, head.output_layer(policy)(hidden)).to(_compute_dtype(hidden))
    return logprobs_and_entropy(logits / temperature, targets)


def token_logprobs(
    policy: nn.Module, hidden: Tensor, targets: Tensor, temperature: float, *, entropy: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probabilities, and entropies if asked for, of `targets` under the policy's output layer.

    An output layer that is more than one matrix (adapters on it, soft-capped logits, weights sharded by ZeRO-3) is
    called as a module, chunk by chunk under activation checkpointing; the numbers are the same.

    Args:
        policy: The model whose output layer is used.
        hidden: (n, d) hidden states of the positions that predict the targets.
        targets: (n,) token ids.
        temperature: Divides the logits.
        entropy: Whether to compute entropies; they are 0 otherwise.

    Returns:
        Log-probabilities (n,) and entropies (n,), in nats, float32 (float64 for float64 hidden states).
    """
    layer = head.output_layer(policy)
    with torch.autocast(hidden.device.type, enabled=False):
        if head.is_plain(policy):
            result: tuple[Tensor, Tensor] = _LinearLogprobs.apply(  # type: ignore[no-untyped-call]
                hidden, layer.weight, layer.bias, targets, temperature, entropy
            )
            return result
        rows = max(1, CHUNK_ELEMENTS // unwrapped_vocabulary(policy))
        hidden = hidden.to(next(layer.parameters()).dtype)
        parts = [
            checkpoint(_chunk_through_module, policy, h, t, temperature, use_reentrant=False)
            for h, t in zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
        ]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def unwrapped_vocabulary(policy: nn.Module) -> int:
    """Return V, the number of tokens that the output layer scores."""
    return int(head.unwrapped(policy).config.vocab_size)
