"""Log-probabilities of chosen tokens without ever holding a (tokens, vocabulary) tensor of the whole batch.

Logits are made in chunks and reduced at once. What the backward pass needs of a chunk is kept while there is room, and
made again where there is none. Used for old, new and reference log-probabilities alike, so that all three have the same
arithmetic.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlhf.models import kernels
from rlhf.models.rounding import rounded_factors
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
    """log softmax((hidden @ weight.T + bias) / temperature) at the targets, in chunks.

    With z the logits, d log p(y) / dz = (onehot(y) - p) / temperature. The gradient from above only scales its rows: so
    it is made in the forward pass, where the logits are at hand, and scaled in the hidden states, which are narrow. The
    backward pass multiplies all that was kept at once, and makes the rest again chunk by chunk.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float,
                gradient_dtype: torch.dtype, differentiated: bool) -> Tensor:  # fmt: skip
        vocabulary = weight.shape[0]
        rows = max(1, CHUNK_ELEMENTS // vocabulary)
        room = KEPT_ELEMENTS // vocabulary if differentiated and any(ctx.needs_input_grad) else 0
        # Whole chunks are kept, the first ones.
        kept_rows = len(hidden) if room >= len(hidden) else room // rows * rows
        kept = hidden.new_empty(kept_rows, vocabulary, dtype=gradient_dtype)
        logprobs = torch.empty(len(hidden), dtype=_compute_dtype(hidden), device=hidden.device)
        for part in _parts(0, len(hidden), rows):
            logits = _logits(hidden[part], weight, bias, gradient_dtype)  # (rows, V)
            if part.stop <= kept_rows:
                logprobs[part] = kernels.target_logprobs_and_gradient(logits, targets[part], temperature, kept[part])
            else:
                logprobs[part] = kernels.target_logprobs(logits, targets[part], temperature)
        ctx.save_for_backward(hidden, weight, bias, targets, kept)
        ctx.temperature, ctx.rows = temperature, rows
        return logprobs

    @staticmethod
    def backward(ctx: Any, logprob_grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, kept = ctx.saved_tensors
        scale = (logprob_grad / ctx.temperature).to(kept.dtype)[:, None]
        scaled, factor = hidden.to(kept.dtype) * scale, weight.to(kept.dtype)
        hidden_grad, weight_grad, bias_grad = torch.empty_like(hidden), None, None
        for part in (slice(0, len(kept)), *_parts(len(kept), len(hidden), ctx.rows)):
            if part.stop <= len(kept):
                grad = kept
            else:
                logits = _logits(hidden[part], weight, bias, kept.dtype)
                grad = torch.empty_like(logits, dtype=kept.dtype)
                kernels.target_logprobs_and_gradient(logits, targets[part], ctx.temperature, grad)
            if ctx.needs_input_grad[0]:
                hidden_grad[part] = (grad @ factor) * scale[part]
            if ctx.needs_input_grad[1]:
                weight_grad = _add(weight_grad, grad.T @ scaled[part], like=weight)
            if ctx.needs_input_grad[2]:
                bias_grad = _add(bias_grad, (grad.T @ scale[part]).squeeze(-1), like=bias)
        return hidden_grad if ctx.needs_input_grad[0] else None, weight_grad, bias_grad, None, None, None, None


def _parts(start: int, stop: int, rows: int) -> list[slice]:
    return [slice(first, min(first + rows, stop)) for first in range(start, stop, rows)]


def _add(total: Tensor | None, addend: Tensor, like: Tensor) -> Tensor:
    addend = addend.to(like.dtype)
    return addend if total is None else total.add_(addend)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, gradient_dtype: torch.dtype) -> Tensor:
    dtype = _compute_dtype(hidden)
    with rounded_factors(gradient_dtype == torch.bfloat16):
        return nn.functional.linear(hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))


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
                hidden,
                layer.weight,
                layer.bias,
                targets,
                temperature,
                gradient_dtype or _compute_dtype(hidden),
                torch.is_grad_enabled(),
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
