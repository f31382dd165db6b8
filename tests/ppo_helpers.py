"""Small policies, tokenizers, episodes and trainers for the tests of the PPO engine."""

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM
from transformers import PreTrainedTokenizerFast as FastTokenizer
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from rlhf.episodes.episode import Episode
from rlhf.ppo.trainer import PPOTrainer
from rlhf.trl.config import PPOConfig

PAD, EOS, BOS = 0, 1, 2


def letters_tokenizer(letters: str = "abcde", *, pad: str | None = "<p>") -> FastTokenizer:
    """Pad, EOS and BOS are 0, 1 and 2, letters follow; `pad="<e>"` makes the tokenizer say that pad is EOS."""
    vocabulary = {token: number for number, token in enumerate(["<p>", "<e>", "<b>", *letters])}
    return FastTokenizer(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<p>")),
        pad_token=pad,
        eos_token="<e>",
        bos_token="<b>",
    )


def exact(model: nn.Module) -> nn.Module:
    """Make a Llama compute in float64 throughout: its own norm goes through float32 whatever its weights are."""
    model = model.double()
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, LlamaRMSNorm):
                norm = nn.RMSNorm(len(child.weight), eps=child.variance_epsilon, dtype=torch.float64)
                norm.weight = child.weight
                setattr(parent, name, norm)
    return model


def tiny(family: str = "llama", *, seed: int = 0, vocab_size: int = 8, layers: int = 2, **options: Any) -> Any:
    """A random model with d = 16 and weights large enough for distributions that are far from uniform; float32."""
    torch.manual_seed(seed)
    common = {"vocab_size": vocab_size, "pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": BOS}
    if family == "llama":
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": layers, "num_attention_heads": 2}
        model: Any = LlamaForCausalLM(LlamaConfig(**{**common, **sizes, "initializer_range": 0.3, **options}))
    elif family == "gpt2":
        sizes = {"n_embd": 16, "n_inner": 32, "n_layer": layers, "n_head": 2, "n_positions": 64}
        model = GPT2LMHeadModel(GPT2Config(**{**common, **sizes, "initializer_range": 0.3, **options}))
    else:
        sizes = {"hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": layers, "num_attention_heads": 2}
        sizes |= {"word_embed_proj_dim": 16, "max_position_embeddings": 64}
        model = OPTForCausalLM(OPTConfig(**{**common, **sizes, "init_std": 0.3, **options}))
    return model


def with_lora(model: nn.Module, **options: Any) -> Any:
    """Put adapters of rank 2 on a model."""
    with warnings.catch_warnings():  # peft asks transformers for a property under its old name
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        return get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM", **options))


def episode(
    prompt: Sequence[int],
    response: Sequence[int],
    score: float = 0.0,
    *,
    rewards: Sequence[float] | None = None,
    stop_reason: str = "eos",
    truncated: bool = False,
    index: int = 0,
) -> Episode:
    """One turn; the score is on its last token, or `rewards` has one number for each token of the response."""
    given = list(rewards) if rewards is not None else [0.0] * (len(response) - 1) + [score]
    return Episode(
        prompt="",
        token_ids=[*prompt, *response],
        response_mask=[False] * len(prompt) + [True] * len(response),
        sampled_logprobs=[0.0] * (len(prompt) + len(response)),
        rewards=[0.0] * len(prompt) + given,
        responses=[""],
        messages=[],
        stop_reason=stop_reason,
        terminated=not truncated,
        truncated=truncated,
        score=float(sum(given)),
        index=index,
    )


def random_episodes(count: int, *, seed: int = 0, vocab_size: int = 8, longest: int = 6) -> list[Episode]:
    """Episodes with prompts and responses of unequal lengths and a reward on every token."""
    generator = torch.Generator().manual_seed(seed)
    episodes = []
    for number in range(count):
        prompt, response = (
            torch.randint(3, vocab_size, (int(torch.randint(1, longest + 1, (), generator=generator)),),
                          generator=generator).tolist()
            for _ in range(2)
        )  # fmt: skip
        rewards = torch.randn(len(response), generator=generator, dtype=torch.float64).tolist()
        episodes.append(episode(prompt, response, rewards=rewards, index=number))
    return episodes


def ppo_config(folder: Path | str, **options: Any) -> PPOConfig:
    """Options for a run on the CPU that reports nothing; what a test is about is in `options`."""
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "logging_steps": 10**6, "save_strategy": "no"}
    defaults = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "temperature": 1.0}
    return PPOConfig(output_dir=str(folder), **{**quiet, **defaults, **options})


@dataclasses.dataclass
class FixedSource:
    """Returns the same episodes in every iteration, whatever the plan says; nothing is sampled."""

    episodes: list[Episode]

    @property
    def num_prompts(self) -> int:
        return len(self.episodes)

    def collect(self, sampler: Any, starts: Sequence[Any], *, seed: int, iteration: int) -> list[Episode]:
        return [self.episodes[number % len(self.episodes)] for number in range(len(starts))]


def make_trainer(
    folder: Path | str, policy: nn.Module, *, episodes: list[Episode] | None = None, **options: Any
) -> PPOTrainer:
    """A trainer on fixed episodes, all of them one iteration, unless `train_dataset` and `reward_model` are given."""
    roles = ("ref_model", "value_model", "reward_model", "train_dataset", "eval_dataset", "callbacks", "peft_config")
    given = {name: options.pop(name) for name in (*roles, "source", "on_iteration") if name in options}
    tokenizer = options.pop("tokenizer", None) or letters_tokenizer()
    if episodes is not None:
        given["source"] = FixedSource(episodes)
        sizes = {"per_device_train_batch_size": len(episodes), "total_episodes": len(episodes)}
        options = {**sizes, **options}
    if "value_model" not in given:
        options = {"critic": "shared", **options}
    return PPOTrainer(ppo_config(folder, **options), tokenizer, policy, **given)


def prompts(rows: Sequence[Sequence[int]]) -> Dataset:
    """A tokenised data set."""
    return Dataset.from_dict({"input_ids": [list(row) for row in rows]})


def record_steps(trainer: PPOTrainer) -> list[dict[str, Tensor]]:
    """Return a list that gets the gradients, by name, of every optimizer step from now on."""
    recorded: list[dict[str, Tensor]] = []

    def record(*_: Any) -> None:
        named = trainer.actor_critic.named_parameters()
        recorded.append({name: p.grad.clone() for name, p in named if p.grad is not None})

    trainer.optimizer.optimizer.register_step_pre_hook(record)
    return recorded


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Weights by name, copied."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
