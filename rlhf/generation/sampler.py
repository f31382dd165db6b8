"""Batched decoding: rows that stop leave the batch, waiting prompts take their place.

What is sampled for a prompt depends on its request alone, not on batch size, order, padding or number of processes:
each row brings its own uniform numbers (`noise`) and stands at its own position (`cache`). The sampler keeps the
log-probability of every sampled token and holds logits of one position a row. It knows nothing of environments.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from rlhf.config.ppo import RolloutConfig
from rlhf.errors import ModelError
from rlhf.generation.cache import SlotCache
from rlhf.generation.generator import Request, Sample
from rlhf.generation.noise import uniforms
from rlhf.launch.runtime import Runtime
from rlhf.packing.packed import PackedRows, rounded_up
from rlhf.policies import head
from rlhf.policies.backend import backend_for

_BLOCK = 256  # tokens summed together when the cumulative distribution is searched
_EVEN = 16  # rows of a step are a multiple of this


def draw(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Sample by inverting the cumulative distribution: the first token whose cumulative mass exceeds u.

    Args:
        logits: (n, V), already divided by the temperature; -inf bans a token.
        uniform: (n,) numbers in [0, 1), float64.

    Returns:
        Token ids (n,) and their log-probabilities (n,) in nats.
    """
    peak = logits.amax(-1, keepdim=True)
    weights = (logits - peak).exp_()  # (n, V), probabilities but for a factor
    if padding := -weights.shape[1] % _BLOCK:
        weights = nn.functional.pad(weights, (0, padding))
    blocks = weights.view(len(logits), -1, _BLOCK)  # (n, blocks, 256)
    # Two levels: the block in which u falls, then the token in that block; float64 keeps the sums exact enough.
    cumulative = blocks.sum(-1).double().cumsum(-1)
    target = uniform[:, None] * cumulative[:, -1:]
    block = (cumulative <= target).sum(-1, keepdim=True).clamp_(max=cumulative.shape[1] - 1)
    before = torch.where(block > 0, cumulative.gather(-1, (block - 1).clamp(min=0)), 0.0)
    inside = blocks.gather(1, block[:, :, None].expand(-1, -1, _BLOCK)).squeeze(1).double()  # (n, 256)
    exceeded = (inside.cumsum(-1) + before > target) & (inside > 0)
    # Rounding can leave no token above u at the very end of a block: then its last possible token is meant.
    last = _BLOCK - 1 - (inside > 0).flip(-1).int().argmax(-1)
    token = torch.where(exceeded.any(-1), exceeded.int().argmax(-1), last) + block.squeeze(-1) * _BLOCK
    chosen = (logits.gather(-1, token[:, None]) - peak).squeeze(-1)
    return token, chosen - cumulative[:, -1].log().to(chosen.dtype)


def truncate(logits: Tensor, top_k: int | None, top_p: float) -> Tensor:
    """Ban all but the k likeliest tokens, then all but the likeliest mass p (Holtzman et al., 2020)."""
    if top_k is not None and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(descending=True)
        mass_before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        banned = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, mass_before >= top_p)
        logits = logits.masked_fill(banned, -torch.inf)
    return logits


class Sampler:
    """Samples responses from a causal language model.

    Args:
        policy: A plain module with all its weights.
        settings: Section `ppo.rollout`: temperature, truncation, stop strings, rows decoded at once.
        stop_token_ids: Tokens that end a response.
        decode: From ids to text, for stop strings.
        runtime: Where it samples.
        on_tokens: Called with the number of tokens of each decoding step.
    """

    def __init__(
        self,
        policy: nn.Module,
        settings: RolloutConfig,
        stop_token_ids: Sequence[int],
        decode: Callable[[Sequence[int]], str] | None = None,
        *,
        runtime: Runtime,
        on_tokens: Callable[[int], None] | None = None,
    ) -> None:
        if settings.stop_strings and decode is None:
            raise ValueError("stop_strings need decode, the tokenizer's function from ids to text")
        self.policy = policy
        self.settings = settings
        self.stop_token_ids = tuple(stop_token_ids)
        self.decode = decode
        self.runtime = runtime
        self.on_tokens = on_tokens
        self.backend = backend_for(policy, runtime)
        first = next(head.trunk(policy).parameters())
        self.device, self.dtype = first.device, first.dtype

    @torch.inference_mode()
    def __call__(self, requests: Sequence[Request]) -> list[Sample]:
        """Sample one response for each request; the order of the results is that of the requests."""
        if not requests:
            return []
        return _Decoding(self, requests).run()

    def next_tokens(
        self, hidden: Tensor, uniform: NDArray[np.float64], banned: NDArray[np.bool_]
    ) -> tuple[Tensor, Tensor]:
        """Draw a token for each of the first rows of hidden states (m, d); `banned` rows may not stop yet."""
        logits = head.scale_logits(self.policy, self._logits(hidden)[: len(uniform)])
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if self.settings.temperature != 1:
            logits = logits / self.settings.temperature
        if banned.any():
            rows = torch.from_numpy(np.flatnonzero(banned)).to(self.device)
            logits[rows[:, None], list(self.stop_token_ids)] = -torch.inf
        logits = truncate(logits, self.settings.top_k, self.settings.top_p)
        return draw(logits, torch.from_numpy(uniform).to(self.device))

    def _logits(self, hidden: Tensor) -> Tensor:
        layer: Any = head.output_layer(self.policy)
        hidden = hidden.to(layer.weight.dtype)
        if self.backend is not None and type(layer) is nn.Linear:
            logits = self.backend.product(layer.weight, hidden)
            if logits is not None:
                return logits if layer.bias is None else logits.add_(layer.bias)
        return layer(hidden)  # type: ignore[no-any-return]


class _Decoding:
    """The state of one call: which request sits in which row, and what it has said so far."""

    def __init__(self, sampler: Sampler, requests: Sequence[Request]) -> None:
        self.sampler = sampler
        self.requests = requests
        self.results = [Sample() for _ in requests]
        self.noise = [uniforms(request.key, request.max_tokens) for request in requests]
        # Longest first, so that the last rows to be admitted are the cheap ones.
        self.waiting = deque(sorted(range(len(requests)), key=lambda i: -len(requests[i].prompt_ids)))
        rows = min(sampler.settings.batch_size, len(requests))
        columns = max(len(request.prompt_ids) + request.max_tokens for request in requests)
        config = head.unwrapped(sampler.policy).config
        window = getattr(config, "sliding_window", None)
        if window is not None and columns > window:
            raise ModelError(
                f"prompt and response may take {columns} tokens, but this model's attention slides over {window}: "
                "shorten them, or choose a model with full attention"
            )
        self.trunk = head.trunk(sampler.policy)
        self.decoder = None if sampler.backend is None else sampler.backend.decoder(columns)
        self.cache = SlotCache(config.num_hidden_layers, rows, columns, sampler.device)
        self.rows: list[int] = []  # row -> request
        self.last_token = torch.zeros(rows, dtype=torch.long, device=sampler.device)

    def run(self) -> list[Sample]:
        """Admit, step and retire until every request is answered."""
        while self.waiting or self.rows:
            free = self.cache.rows - len(self.rows)
            # Refilling a row costs a forward pass of its own: wait until an eighth of the rows is free.
            if self.waiting and (not self.rows or free * 8 >= self.cache.rows):
                self._admit([self.waiting.popleft() for _ in range(min(free, len(self.waiting)))])
            else:
                self._step()
        return self.results

    def _admit(self, admitted: list[int]) -> None:
        prompts = PackedRows.from_rows([self.requests[i].prompt_ids for i in admitted], self.sampler.device)
        first = len(self.rows)
        rows = torch.arange(first, first + len(admitted), device=self.sampler.device)
        self.rows += admitted
        self._sample(self._prefill(prompts, rows), first)

    def _prefill(self, prompts: PackedRows, rows: Tensor) -> Tensor:
        """Return the hidden states (n, d) behind n prompts, and put these into rows of the cache."""
        if self.decoder is not None:
            hidden, prefilled = self.decoder.prefill(prompts)
        else:
            prefilled = DynamicCache()
            output = self.trunk(input_ids=prompts.pad(prompts.input_ids), past_key_values=prefilled, use_cache=True)
            hidden = output.last_hidden_state[torch.arange(len(rows)), prompts.lengths - 1]
        self.cache.insert(rows, prefilled, prompts.lengths)
        return hidden

    def _step(self) -> None:
        # Free rows take part for nothing, so that there are few numbers of rows: MKL takes longer for 8 than for 16.
        active = min(rounded_up(len(self.rows), _EVEN), self.cache.rows)
        tokens, positions = self.last_token[:active], self.cache.lengths[:active].clone()
        if self.decoder is not None:
            hidden = self.decoder.step(tokens, positions, self.cache)
        else:
            output = self.trunk(
                input_ids=tokens[:, None],
                attention_mask=self.cache.begin_step(active, self.sampler.dtype),
                position_ids=positions[:, None],
                past_key_values=self.cache,
                use_cache=True,
            )
            hidden = output.last_hidden_state[:, -1]
        self.cache.lengths[: len(self.rows)] += 1
        self._sample(hidden, 0)

    def _sample(self, hidden: Tensor, first: int) -> None:
        """Draw a token for the rows from `first` on, record it, and let the rows go that it ends."""
        active = self.rows[first:]
        said = [len(self.results[i].token_ids) for i in active]
        uniform = np.array([self.noise[i][n] for i, n in zip(active, said, strict=True)])
        banned = np.array([n < self.requests[i].min_tokens for i, n in zip(active, said, strict=True)])
        tokens, logprobs = self.sampler.next_tokens(hidden, uniform, banned)
        self.last_token[first : first + len(active)] = tokens
        for i, token, logprob in zip(active, tokens.tolist(), logprobs.tolist(), strict=True):
            self.results[i].token_ids.append(token)
            self.results[i].logprobs.append(logprob)
        if self.sampler.on_tokens is not None:
            self.sampler.on_tokens(len(active))
        for row in reversed(range(first, len(self.rows))):
            if self._ended(self.rows[row]):
                self._retire(row)

    def _ended(self, request: int) -> bool:
        result, settings = self.results[request], self.sampler.settings
        if result.token_ids[-1] in self.sampler.stop_token_ids:
            result.stop_reason = "eos"
            return True
        if settings.stop_strings and self.sampler.decode is not None:
            text = self.sampler.decode(result.token_ids)
            if any(stop in text for stop in settings.stop_strings):
                result.stop_reason = "stop_string"
                return True
        return len(result.token_ids) >= self.requests[request].max_tokens

    def _retire(self, row: int) -> None:
        """Free a row: the last active row moves into it."""
        last = len(self.rows) - 1
        if row != last:
            self.cache.move(last, row)
            self.rows[row] = self.rows[last]
            self.last_token[row] = self.last_token[last]
        self.cache.lengths[last] = 0  # a free row sees its own token alone
        self.rows.pop()
