"""Small policies, tokenizers, episodes and trainers for the tests of the PPO engine."""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any, get_args

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM
from transformers import PreTrainedTokenizerFast as FastTokenizer
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from rlhf.config.ppo import KLConfig, MissingStopConfig, PPOSectionConfig, RolloutConfig
from rlhf.episodes.episode import Episode
from rlhf.episodes.lengths import Lengths
from rlhf.generation.torch_generator import TorchGenerator
from rlhf.launch.runtime import Runtime
from rlhf.policies.actor_critic import SharedCritic
from rlhf.ppo.batch import AdvantagedRollout, Rollout
from rlhf.ppo.optimizer import parameter_groups
from rlhf.ppo.roles import Roles
from rlhf.ppo.scoring import estimate_advantages
from rlhf.ppo.trainer import PPO
from rlhf.trl.token_dataset import TokenDatasetSource

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


# Flat names of keys that lie in a section of their own.
_INNER = {
    **{name: ("rollout", name) for name in RolloutConfig.model_fields},
    **{f"kl_{name}": ("kl", name) for name in KLConfig.model_fields},
    **{f"missing_stop_{name}": ("missing_stop", name) for name in MissingStopConfig.model_fields},
    "critic": ("critic", "type"),
    "critic_learning_rate": ("critic", "learning_rate"),
}


def ppo_section(**settings: Any) -> PPOSectionConfig:
    """Section `ppo` for a test: one iteration, one minibatch, a small rate; inner keys may be given flat."""
    values: dict[str, Any] = {"iterations": 1, "minibatches": 1, "learning_rate": 3e-6}
    values |= {"advantage": "gae", "critic": {"type": "shared"}}
    for name, value in settings.items():
        section, key = _INNER.get(name, (None, name))
        if section is None:
            values[name] = value
        else:
            values[section] = {**values.get(section, {}), key: value}
    if "total_episodes" in values:
        values["iterations"] = values.pop("total_episodes") // values["episodes_per_iteration"]
    # Nobody may configure these: a rate of 0, and estimators that are registered by the test.
    unusual = {"learning_rate": 0.0} if values["learning_rate"] == 0 else {}
    if values["advantage"] not in get_args(PPOSectionConfig.model_fields["advantage"].annotation):
        unusual["advantage"] = values["advantage"]
    usual = {"learning_rate": 1.0, "advantage": "reinforce"}
    if values.get("kl", {}).get("coefficient", 0) < 0:
        unusual["kl"], usual["kl"] = KLConfig().model_copy(update=values["kl"]), {}
    section = PPOSectionConfig.model_validate({**values, **{name: usual[name] for name in unusual}})
    return section.model_copy(update=unusual)


def runtime(*, bf16: bool = False, compile_kernels: bool | None = False) -> Runtime:
    """A runtime on the CPU; nothing is compiled unless a test asks for it."""
    dtype = torch.bfloat16 if bf16 else torch.float32
    return dataclasses.replace(Runtime.detect(), compute_dtype=dtype, compile_kernels=compile_kernels)


@dataclasses.dataclass
class FixedSource:
    """Returns the same episodes in every iteration, whatever the plan says; nothing is sampled."""

    episodes: list[Episode]

    @property
    def num_prompts(self) -> int:
        return len(self.episodes)

    def collect(self, generator: Any, starts: Sequence[Any], *, seed: int, iteration: int) -> list[Episode]:
        return [self.episodes[number % len(self.episodes)] for number in range(len(starts))]


def make_ppo(
    policy: nn.Module,
    *,
    episodes: list[Episode] | None = None,
    source: Any = None,
    dataset: Any = None,
    reward: Any = None,
    reference: nn.Module | None = None,
    critic_model: nn.Module | None = None,
    tokenizer: Any = None,
    stop_token_ids: Sequence[int] = (EOS,),
    seed: int = 0,
    bf16: bool = False,
    optimizer: Any = None,
    compile_kernels: bool | None = False,
    on_iteration: Any = None,
    **settings: Any,
) -> PPO:
    """The loop on fixed episodes, all of them one iteration, or on a source, or on tokenised prompts and a reward."""
    where = runtime(bf16=bf16, compile_kernels=compile_kernels)
    tokenizer = tokenizer or letters_tokenizer()
    if episodes is not None:
        source = FixedSource(episodes)
        settings = {"episodes_per_iteration": len(episodes), **settings}
    if critic_model is not None and not isinstance(critic_model, SharedCritic):
        settings = {"critic": "separate", **settings}
    section = ppo_section(**{"episodes_per_iteration": 8, **settings})
    if source is None:
        rollout = section.rollout
        lengths = Lengths(
            rollout.max_prompt_tokens,
            rollout.max_response_tokens,
            rollout.min_response_tokens,
            max_total_tokens=getattr(policy.config, "max_position_embeddings", None),
        )
        source = TokenDatasetSource(dataset, tokenizer, lengths, [reward], [1.0], rollout.stop_strings, bf16=bf16)
    generator = TorchGenerator(policy, section.rollout, stop_token_ids, tokenizer.decode, where)
    roles = Roles(policy, critic_model, reference)
    return PPO(
        section, roles, source, generator, where, seed=seed, optimizer=optimizer, on_iteration=on_iteration
    )  # fmt: skip


def advantaged(ppo: PPO, episodes: Sequence[Episode] | None = None) -> AdvantagedRollout | None:
    """The batch of the given episodes, or of the first rollout."""
    scored = ppo.score(ppo.rollout(0) if episodes is None else episodes)
    return None if scored is None else estimate_advantages(scored, ppo.settings)


def sgd(learning_rate: float, critic_learning_rate: float | None = None) -> Any:
    """Plain gradient descent, to be given as `optimizer`."""

    def make(model: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameter_groups(model, learning_rate, critic_learning_rate, 0.0))

    return make


def filled(rollout: Rollout, **given: Tensor) -> AdvantagedRollout:
    """A rollout with the given numbers of models and estimators; the others are 0."""
    zeros = torch.zeros_like(rollout.sampled_logprobs)
    names = ("logprobs", "ref_logprobs", "values", "kl", "rewards", "advantages", "returns")
    fields = {name: zeros.clone() for name in names} | {"final_values": zeros.new_zeros(len(rollout))}
    return AdvantagedRollout(**{**vars(rollout), **fields, **given})


def prompts(rows: Sequence[Sequence[int]]) -> Dataset:
    """A tokenised data set."""
    return Dataset.from_dict({"input_ids": [list(row) for row in rows]})


def record_steps(trainer: PPO) -> list[dict[str, Tensor]]:
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
