"""Log-probabilities of chosen tokens without ever holding a (tokens, vocabulary) tensor of the whole batch.

Logits are made in chunks and reduced at once. What the backward pass needs of a chunk is kept while there is room, and
made again where there is none. Used for old, new and reference log-probabilities alike, so that all three have the same
arithmetic.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlhf.models.precision import rounded_factors
from rlhf.ppo import head

CHUNK_ELEMENTS = 4 * 2**20  # logits made at once; 16 MiB in float32, which the allocator hands out again
KEPT_ELEMENTS = 40 * 2**20  # gradients kept for the backward pass; 160 MiB in float32, half of it in bfloat16


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
    """log softmax(hidden @ weight.T + bias) at the targets, in chunks.

    With z the logits, d log p(y) / dz = onehot(y) - p. The gradient from above only scales its rows: so it is made in
    the forward pass, where the logits are at hand, and scaled in the hidden states, which are narrow.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float,
                gradient_dtype: torch.dtype) -> Tensor:  # fmt: skip
        rows = max(1, CHUNK_ELEMENTS // weight.shape[0])
        room = KEPT_ELEMENTS if any(ctx.needs_input_grad) else -1
        normaliser = torch.empty(len(hidden), dtype=_compute_dtype(hidden), device=hidden.device)
        logprobs = torch.empty_like(normaliser)
        kept = []
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            logits = _logits(hidden[part], weight, bias, temperature, gradient_dtype)  # (rows, V)
            normaliser[part] = logits.logsumexp(-1)
            logprobs[part] = logits.gather(-1, targets[part, None]).squeeze(-1) - normaliser[part]
            room -= logits.numel()  # below zero once a chunk did not fit: what is kept are the first chunks
            if room >= 0:
                kept.append(_logprob_gradient(logits, normaliser[part], targets[part]).to(gradient_dtype))
        ctx.save_for_backward(hidden, weight, bias, targets, normaliser, *kept)
        ctx.temperature, ctx.rows, ctx.gradient_dtype = temperature, rows, gradient_dtype
        return logprobs

    @staticmethod
    def backward(ctx: Any, logprob_grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normaliser, *kept = ctx.saved_tensors
        hidden_grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        weight_grad = torch.zeros_like(weight, dtype=normaliser.dtype) if ctx.needs_input_grad[1] else None
        bias_grad = torch.zeros_like(bias, dtype=normaliser.dtype) if bias is not None else None
        scale = (logprob_grad / ctx.temperature).to(ctx.gradient_dtype)[:, None]
        scaled, factor = hidden.to(ctx.gradient_dtype) * scale, weight.to(ctx.gradient_dtype)
        for number, start in enumerate(range(0, len(hidden), ctx.rows)):
            part = slice(start, start + ctx.rows)
            if number < len(kept):
                grad = kept[number]
            else:
                logits = _logits(hidden[part], weight, bias, ctx.temperature, ctx.gradient_dtype)
                grad = _logprob_gradient(logits, normaliser[part], targets[part]).to(ctx.gradient_dtype)
            if hidden_grad is not None:
                hidden_grad[part] = (grad @ factor) * scale[part]
            if weight_grad is not None:
                weight_grad += grad.T @ scaled[part]
            if bias_grad is not None:
                bias_grad += (grad.T @ scale[part]).squeeze(-1)
        grads = zip((hidden_grad, weight_grad, bias_grad), (hidden, weight, bias), strict=True)
        return *(None if grad is None else grad.to(like.dtype) for grad, like in grads), None, None, None


def _logprob_gradient(logits: Tensor, normaliser: Tensor, targets: Tensor) -> Tensor:
    """onehot(y) - p, (rows, V); overwrites the logits."""
    negative = logits.sub_(normaliser[:, None]).exp_().neg_()
    return negative.scatter_add_(-1, targets[:, None], torch.ones_like(negative[:, :1]))


def _logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, gradient_dtype: torch.dtype
) -> Tensor:
    dtype = _compute_dtype(hidden)
    with rounded_factors(gradient_dtype == torch.bfloat16):
        logits = nn.functional.linear(hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
    return logits.div_(temperature) if temperature != 1 else logits


def _chunk_through_module(
    policy: nn.Module, hidden: Tensor, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    logits = head.scale_logits(policy, head.output_layer(policy)(hidden)).to(_compute_dtype(hidden))
    return logprobs_and_entropy(logits / temperature, targets)


def token_logprobs(
    policy: nn.Module,
    hidden: Tensor,
    targets: Tensor,
    temperature: float,
    *,
    entropy: bool = False,
    gradient_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities, and entropies if asked for, of `targets` under the policy's output layer.

    An output layer that is more than one matrix (adapters on it, soft-capped logits, weights sharded by ZeRO-3) is
    called as a module, chunk by chunk under activation checkpointing, and so is one whose entropy is wanted; the
    numbers are the same.

    Args:
        policy: The model whose output layer is used.
        hidden: (n, d) hidden states of the positions that predict the targets.
        targets: (n,) token ids.
        temperature: Divides the logits.
        entropy: Whether to compute entropies; they are 0 otherwise.
        gradient_dtype: Of the matrix products in the backward pass; by default that of the log-probabilities. With
            bfloat16, those of the forward pass round their factors too.

    Returns:
        Log-probabilities (n,) and entropies (n,), in nats, float32 (float64 for float64 hidden states).
    """
    layer = head.output_layer(policy)
    with torch.autocast(hidden.device.type, enabled=False):
        if head.is_plain(policy) and not entropy:
            logprobs: Tensor = _LinearLogprobs.apply(  # type: ignore[no-untyped-call]
                hidden, layer.weight, layer.bias, targets, temperature, gradient_dtype or _compute_dtype(hidden)
            )
            return logprobs, torch.zeros_like(logprobs)
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
