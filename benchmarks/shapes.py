"""What is measured: four pairs of model and batch, the same for every trainer.

A and B are random Llamas on random prompts, which differ in the vocabulary; pad and EOS are no words of theirs, so that
nothing stops early. C and D are SmolLM2-135M after the quickstart's SFT stage, on the quickstart's prompts, stopping
where the model stops.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from reward_models.chat import encode_prompt
from rlhf.config.data import DataConfig
from rlhf.data import load_rows


@dataclass(frozen=True)
class Shape:
    """A model and a batch.

    Attributes:
        vocabulary: Tokens of the random model; None for SmolLM2.
        episodes: Episodes of an iteration; the data set has as many prompts, so every iteration has the same.
        response_tokens: New tokens of a response, at most.
        lora: Whether the policy is trained through adapters.
        prompt_tokens: Fewest and most tokens of a random prompt.
        layers, hidden_size, intermediate_size: Of the random model.
    """

    vocabulary: int | None
    episodes: int
    response_tokens: int
    epochs: int
    minibatches: int
    lora: bool = False
    prompt_tokens: tuple[int, int] = (8, 31)
    layers: int = 6
    hidden_size: int = 256
    intermediate_size: int = 688


SHAPES = {
    "A": Shape(vocabulary=8_192, episodes=64, response_tokens=48, epochs=4, minibatches=4),
    "B": Shape(vocabulary=49_152, episodes=64, response_tokens=48, epochs=4, minibatches=4),
    "C": Shape(vocabulary=None, episodes=16, response_tokens=80, epochs=2, minibatches=2),
    "D": Shape(vocabulary=None, episodes=16, response_tokens=80, epochs=2, minibatches=2, lora=True),
}


@dataclass
class Roles:
    """Everything a PPO trainer is given."""

    tokenizer: Any
    policy: nn.Module
    reference: nn.Module | None
    reward: nn.Module
    critic: nn.Module
    prompts: Dataset
    peft_config: LoraConfig | None


def build(shape: Shape, policy_folder: Path | None, dtype: torch.dtype = torch.float32) -> Roles:
    """Make the models and prompts of a shape; the same weights and prompts at every call."""
    torch.manual_seed(0)
    return _random_roles(shape, dtype) if shape.vocabulary else _smollm_roles(shape, policy_folder, dtype)


def _random_roles(shape: Shape, dtype: torch.dtype) -> Roles:
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.hidden_size // 64,
        max_position_embeddings=1024,
        pad_token_id=None,
        eos_token_id=None,
        bos_token_id=None,
        num_labels=1,
    )
    policy, reference = LlamaForCausalLM(config), LlamaForCausalLM(config)
    reference.load_state_dict(policy.state_dict())
    reward, critic = LlamaForSequenceClassification(config), LlamaForSequenceClassification(config)
    prompts = random_prompts(shape.episodes, config.vocab_size, *shape.prompt_tokens)
    models = (model.to(dtype) for model in (policy, reference, reward, critic))
    return Roles(numbered_tokenizer(config.vocab_size), *models, prompts, None)


def random_prompts(count: int, vocabulary: int, shortest: int, longest: int, seed: int = 0) -> Dataset:
    """Return the same prompts of random words at every call."""
    numbers = random.Random(seed)
    lengths = [numbers.randint(shortest, longest) for _ in range(count)]
    return Dataset.from_dict({"input_ids": [[numbers.randrange(vocabulary) for _ in range(n)] for n in lengths]})


def numbered_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Name the words of a model; pad and EOS are two more, which the model has not got and cannot say."""
    words = [*(f"w{number}" for number in range(vocabulary)), "<pad>", "<eos>"]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


def _smollm_roles(shape: Shape, folder: Path | None, dtype: torch.dtype) -> Roles:
    if folder is None:
        raise ValueError("shapes C and D start from the quickstart's SFT policy: give its folder")
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    rows = load_rows(DataConfig(path="packaged:customer_service/demonstrations"), "prompts").train[: shape.episodes]
    prompts = [encode_prompt(tokenizer, row.prompt) for row in rows]
    reward, critic = (
        AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=dtype) for _ in range(2)
    )
    policy = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    reference = None if shape.lora else AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    adapters = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    return Roles(
        tokenizer,
        policy,
        reference,
        reward,
        critic,
        Dataset.from_dict({"input_ids": prompts}),
        adapters if shape.lora else None,
    )
