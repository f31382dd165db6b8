"""Log-probabilities of chosen tokens without ever holding a (tokens, vocabulary) tensor of the whole batch.

Logits are made for a tile of the vocabulary at a time and reduced at once. What the backward pass needs of a tile is
kept while there is room, and made again where there is none. Used for old, new and reference log-probabilities alike,
so that all three have the same arithmetic.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlhf.policies import head
from rlhf.policies.backend import Backend

TILE = 4096  # tokens of the vocabulary whose logits are made at once, so that the output layer is read once
ROWS = 1024  # rows for which they are, at most: 16 MiB of logits in float32
EVEN = 16  # what their number is made a multiple of, for a backend
KEPT_ELEMENTS = 40 * 2**20  # exponentials kept for the backward pass; 160 MiB in float32, half of it in bfloat16


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
    """log softmax((hidden @ weight.T + bias) / temperature) at the targets, a tile of the vocabulary at a time.

    With z the scaled logits, each tile gives its peak m, exp(z - m) and the sum of those; all tiles together give the
    normaliser. The gradient d log p(y) / dz = onehot(y) - p is, within a tile, exp(z - m) but for a factor a row: so
    the forward pass keeps exp(z - m), with 0 at the target, and the backward pass puts the factor into the hidden
    states, which are narrow. At the target 1 - p is added apart, so that no rounding touches it where p is nearly 1.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float,
                gradient_dtype: torch.dtype, room: int, backend: Backend | None) -> Tensor:  # fmt: skip
        ctx.kept = {}  # of the first tiles, as many as there is room for; not saved tensors, which go all at once
        ctx.make = partial(
            _tile_softmax, targets=targets, temperature=temperature, gradient_dtype=gradient_dtype, backend=backend
        )
        room = room if any(ctx.needs_input_grad) else 0
        sums = []
        for number, tile in enumerate(_tiles(len(weight))):
            keep = len(hidden) * tile.stop <= room
            part, powers = ctx.make(hidden, weight, bias, tile=tile, keep=keep)
            sums.append(part)
            if keep:
                ctx.kept[number] = powers
        peaks, totals, chosen = (torch.stack(parts) for parts in zip(*sums, strict=True))  # (tiles, n)
        normaliser = (peaks + totals.log()).logsumexp(0)
        logprobs = chosen.gather(0, targets[None] // TILE).squeeze(0) - normaliser
        ctx.save_for_backward(hidden, weight, bias, targets, logprobs, (peaks - normaliser).exp())
        ctx.temperature = temperature
        return logprobs

    @staticmethod
    def backward(ctx: Any, logprob_grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, logprobs, factors = ctx.saved_tensors
        for_hidden, for_weight, for_bias = ctx.needs_input_grad[:3]
        scale = (logprob_grad / ctx.temperature)[:, None]
        at_target = -torch.expm1(logprobs)[:, None] * scale
        hidden_grad = weight[targets] * at_target if for_hidden else None
        weight_grad = torch.empty_like(weight) if for_weight else None
        bias_grad = torch.empty_like(bias) if for_bias else None
        for number, tile in enumerate(_tiles(len(weight))):
            powers = ctx.kept.pop(number, None)
            if powers is None:
                _, powers = ctx.make(hidden, weight, bias, tile=tile, keep=True)
            row_factors = -factors[number, :, None] * scale
            if hidden_grad is not None:
                hidden_grad.addcmul_(powers.T @ weight[tile].to(powers.dtype), row_factors)
            if weight_grad is not None:
                scaled = (hidden * row_factors).to(powers.dtype)
                if powers.dtype == weight.dtype:
                    torch.mm(powers, scaled, out=weight_grad[tile])  # without a copy
                else:
                    weight_grad[tile] = powers @ scaled
            if bias_grad is not None:
                bias_grad[tile] = (powers @ row_factors.to(powers.dtype)).squeeze(-1)
        if weight_grad is not None:
            weight_grad.index_add_(0, targets, (hidden * at_target).to(weight.dtype))
        if bias_grad is not None:
            bias_grad.index_add_(0, targets, at_target.squeeze(-1).to(bias.dtype))
        return None if hidden_grad is None else hidden_grad.to(hidden.dtype), weight_grad, bias_grad, *(None,) * 5


def _tiles(vocabulary: int) -> list[slice]:
    return [slice(first, min(first + TILE, vocabulary)) for first in range(0, vocabulary, TILE)]


def _tile_softmax(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, *, targets: Tensor, temperature: float,
    gradient_dtype: torch.dtype, tile: slice, keep: bool, backend: Backend | None,
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor | None]:  # fmt: skip
    """Compute what the softmax needs of a tile of the vocabulary, of z = logits / temperature.

    Returns:
        max z, the sum of exp(z - max z), and z at the targets or at some other token of the tile, (n,) each; and
        exp(z - max z), (v, n), with 0 at the targets, None if they are not to be kept.
    """
    logits = _logits(hidden, weight[tile], None if bias is None else bias[tile], gradient_dtype, backend)
    places = targets - tile.start
    rows = places.clamp(0, len(logits) - 1)
    powers = torch.empty_like(logits, dtype=gradient_dtype) if keep else None
    fast = None if backend is None else backend.tile_softmax(logits, temperature, powers)
    peaks, totals = tile_sums(logits, temperature, powers) if fast is None else fast
    if powers is not None:
        own = (places == rows).nonzero().squeeze(-1)
        powers[rows[own], own] = 0
    return (peaks, totals, logits.gather(0, rows[None]).squeeze(0) / temperature), powers


def tile_sums(logits: Tensor, temperature: float, powers: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compute peaks and sums of a softmax over a tile of the vocabulary, of z = logits / temperature.

    Args:
        logits: (v, n), a column for each token of the rows; -inf bans a token of the vocabulary.
        temperature: See above.
        powers: (v, n) Gets exp(z - max z), if it is given.

    Returns:
        max z and the sum of exp(z - max z), (n,) each.
    """
    scaled = logits / temperature
    # Where every token is banned the peak is the lowest number, and not -inf: -inf - -inf is not a number.
    peaks = scaled.amax(0).clamp(min=torch.finfo(scaled.dtype).min)
    exponentials = (scaled - peaks).exp()
    if powers is not None:
        powers.copy_(exponentials)
    return peaks, exponentials.sum(0)


def _logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, gradient_dtype: torch.dtype, backend: Backend | None
) -> Tensor:
    """Logits (tokens of the vocabulary, n)."""
    dtype, logits = _compute_dtype(hidden), None
    hidden = hidden.to(dtype)
    if backend is not None and gradient_dtype == torch.bfloat16:
        logits = backend.rounded_product(weight, hidden)
    if logits is None:
        logits = weight.to(dtype) @ hidden.T
    return logits if bias is None else logits.add_(bias.to(dtype)[:, None])


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
    backend: Backend | None = None,
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
            bfloat16, a backend that multiplies it rounds the factors of the forward pass too.
        backend: Of the policy; None computes everything in torch.

    Returns:
        Log-probabilities (n,) and entropies (n,), in nats, float32 (float64 for float64 hidden states).
    """
    layer = head.output_layer(policy)
    with torch.autocast(hidden.device.type, enabled=False):
        if head.is_plain(policy) and not entropy:
            count, missing = len(hidden), -len(hidden) % EVEN
            hidden, targets = nn.functional.pad(hidden, (0, 0, 0, missing)), nn.functional.pad(targets, (0, missing))
            parts = list(zip(torch.split(hidden, ROWS), torch.split(targets, ROWS), strict=True))
            room = KEPT_ELEMENTS // max(len(parts), 1) if torch.is_grad_enabled() else 0
            dtype = gradient_dtype or _compute_dtype(hidden)
            logprobs = torch.cat([
                _LinearLogprobs.apply(  # type: ignore[no-untyped-call]
                    h, layer.weight, layer.bias, t, temperature, dtype, room, backend
                )
                for h, t in parts
            ])[:count]  # fmt: skip
            return logprobs, torch.zeros_like(logprobs)
        rows = max(1, ROWS * TILE // unwrapped_vocabulary(policy))
        hidden = hidden.to(next(layer.parameters()).dtype)
        chunks = [
            checkpoint(_chunk_through_module, policy, h, t, temperature, use_reentrant=False)
            for h, t in zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
        ]
        return torch.cat([chunk[0] for chunk in chunks]), torch.cat([chunk[1] for chunk in chunks])


def unwrapped_vocabulary(policy: nn.Module) -> int:
    """Return V, the number of tokens that the output layer scores."""
    return int(head.unwrapped(policy).config.vocab_size)
