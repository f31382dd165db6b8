"""Two small tasks on which trainers are compared by what they learn: a bandit, and a language with keywords.

Pad and EOS are no words of the models, so every response has its full length, and what TRL's trainer does differently
where responses stop plays no part.

Scores are normalised, as those of this project's reward models are. That matters to a shared critic alone: its loss and
the policy's move the same trunk, so their sizes have to fit together. With the share of keywords as the score, whose
spread is 0.11, and the usual value coefficient of 0.1 it learns more slowly than a separate one (three seeds, 16
iterations: 0.50 against 0.54, TRL's trainer 0.53); with a value coefficient of 2 it does not (0.53).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from benchmarks.shapes import Roles, numbered_tokenizer, random_prompts
from benchmarks.trainers import batch_options

ARMS = torch.tensor([0.5, 0.3, 0.2])  # what the reference policy of the bandit draws
KEYWORDS = 16  # the first words of the language's 64


@dataclass(frozen=True)
class Task:
    """Something to learn.

    Attributes:
        roles: Makes models and prompts from a seed.
        options: What trainers are told, besides the batch.
        episodes, minibatches, iterations: The batch; an iteration is the whole data set.
        last: Iterations whose mean counts as what was reached.
    """

    roles: Callable[[int], Roles]
    options: dict[str, Any]
    episodes: int
    minibatches: int
    iterations: int
    last: int

    def all_options(self, seed: int, iterations: int | None = None) -> dict[str, Any]:
        """Return everything that trainers are told."""
        batch = batch_options(self.episodes, self.minibatches, iterations or self.iterations)
        return {**batch, **self.options, "seed": seed}


class TokenReward(nn.Module):
    """A reward model in the form that both trainers take: `read` scores every position, the last one counts."""

    base_model_prefix = "model"

    def __init__(self, read: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.read = read
        self.score = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.score.weight)

    def model(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        """Return what stands for hidden states, (B, L, 1)."""
        hidden = self.read(input_ids)[..., None].float()
        return SimpleNamespace(last_hidden_state=hidden, hidden_states=[hidden])


def _llama(vocabulary: int, *, layers: int, hidden_size: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden_size // 32),  # of 32, as compiled attention has them
        max_position_embeddings=128,
        pad_token_id=None,
        eos_token_id=None,
        bos_token_id=None,
        num_labels=1,
    )


def _roles(config: LlamaConfig, policy: Any, reward: nn.Module, prompts: Dataset) -> Roles:
    reference, critic = LlamaForCausalLM(config), LlamaForSequenceClassification(config)
    reference.load_state_dict(policy.state_dict())
    nn.init.zeros_(critic.score.weight)
    return Roles(numbered_tokenizer(config.vocab_size), policy, reference, reward, critic, prompts, None)


def bandit(seed: int) -> Roles:
    """Three arms with rewards 0, 1 and 2; the reference draws them with probabilities .5, .3 and .2.

    With coefficient 1 the best policy is ref exp(r) / Z, and its reward ln Z = 1.0272.
    """
    torch.manual_seed(seed)
    config = _llama(len(ARMS), layers=1, hidden_size=16)
    policy = LlamaForCausalLM(config)
    with torch.no_grad():
        hidden = policy.model(torch.tensor([[0]])).last_hidden_state[0, -1]
        policy.lm_head.weight.copy_(torch.outer(ARMS.log(), hidden / hidden.square().sum()))
    prompts = Dataset.from_dict({"input_ids": [[0]] * TASKS["bandit"].episodes})
    return _roles(config, policy, TokenReward(lambda ids: ids), prompts)


def keywords(seed: int) -> Roles:
    """The score is the number of keywords, normalised to mean 0 and variance 1 on a policy that draws every word alike.

    With a penalty of 0.2 the best policy draws p ~ ref exp(r / 0.2), a keyword with probability 0.86.
    """
    torch.manual_seed(seed)
    task = TASKS["keywords"]
    config = _llama(64, layers=2, hidden_size=64)
    prompts = random_prompts(task.episodes, config.vocab_size, 2, 6, seed)
    length = task.options["response_length"]
    chance = KEYWORDS / config.vocab_size
    spread = math.sqrt(chance * (1 - chance) / length)
    reward = TokenReward(lambda ids: (trailing_mean(ids < KEYWORDS, length) - chance) / spread)
    return _roles(config, LlamaForCausalLM(config), reward, prompts)


def trailing_mean(flags: Tensor, length: int) -> Tensor:
    """Mean of the last `length` flags at every position, those before the first taken as False: (B, L) -> (B, L)."""
    count = nn.functional.pad(flags.float(), (length, 0)).cumsum(1)  # (B, length + L)
    return (count[:, length:] - count[:, :-length]) / length


TASKS = {
    "bandit": Task(
        bandit,
        {"response_length": 1, "temperature": 1.0, "kl_coef": 1.0, "learning_rate": 5e-4, "num_ppo_epochs": 2},
        episodes=64,
        minibatches=2,
        iterations=20,
        last=10,
    ),
    "keywords": Task(
        keywords,
        {"response_length": 16, "temperature": 1.0, "kl_coef": 0.2, "learning_rate": 1e-3, "num_ppo_epochs": 2},
        episodes=64,
        minibatches=4,
        iterations=20,
        last=5,
    ),
}
