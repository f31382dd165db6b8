"""The PPO stage: the SFT policy plays episodes in a text environment and learns from their rewards.

Reads the SFT folder (or the configured model), this run's reward model where it is a component of the score, and the
environment; writes a policy folder that `from_pretrained` loads, and the critic beside it. The loop itself is
`rlhf.ppo.trainer`.
"""

from collections.abc import Sequence
from contextlib import closing
from typing import Any, NamedTuple

from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from reward_models.chat import encode_prompt
from reward_models.combine import CombinedReward
from rlhf.config.ppo import PPOSectionConfig
from rlhf.config.schema import Config
from rlhf.data import Prompt, Tokens, load_rows
from rlhf.episodes.environment_source import EnvironmentSource
from rlhf.episodes.environments import training_source
from rlhf.episodes.mixed_source import MixedSource
from rlhf.episodes.plan import plan
from rlhf.episodes.rehearsal import rehearse
from rlhf.errors import StageError
from rlhf.files.run_folder import RunFolder
from rlhf.generation.torch_generator import TorchGenerator
from rlhf.launch.deepspeed import barrier, deepspeed_config, forget_zero, full_state
from rlhf.launch.runtime import Runtime
from rlhf.models.adapters import add_adapters
from rlhf.models.load import check_classifier, load_policy, load_sequence_classifier, open_config
from rlhf.policies.critics import load_critic, policy_part, save_critic
from rlhf.ppo.advantages import ESTIMATORS
from rlhf.ppo.roles import Roles
from rlhf.ppo.rollout_rows import rollout_rows
from rlhf.ppo.scoring import trainable
from rlhf.ppo.trainer import PPO, Iteration
from rlhf.scoring.limits import readable_tokens
from rlhf.scoring.scorer import build_scorer, rehearsal_scorer
from rlhf.stages.base_model import policy_folder, policy_tokenizer
from rlhf.stages.supervised import Trained, report_rows, save
from rlhf.tracking.token_texts import TokenTexts
from rlhf.tracking.tracker import Tracker

_REHEARSED = 2  # episodes of an environment without numbered rows


class Inputs(NamedTuple):
    """What the stage reads, checked."""

    tokenizer: PreTrainedTokenizerBase
    prompts: Sequence[Prompt] | None  # None: the environment brings its own


def prepare(config: Config, tokenizer: PreTrainedTokenizerBase) -> Inputs:
    """Read and check everything that the stage will need, and rehearse two episodes, before any model is loaded.

    Args:
        config: The configuration.
        tokenizer: The policy's.

    Raises:
        UserError: The prompts, the environment, a reward function or a model cannot be used.
    """
    section = _section(config)
    model_config = open_config(config.model, tokenizer)
    critic = section.critic
    copies_policy = critic.type == "separate" and critic.init == "policy" and critic.path is None
    if ESTIMATORS[section.advantage].uses_critic and copies_policy:
        check_classifier("model", model_config)
    inputs = Inputs(tokenizer, load_prompts(config, tokenizer))
    source = make_source(config, inputs, rehearsal_scorer(config), model_config, count=_REHEARSED)
    for part in source.parts:
        with closing(part.environments):
            starts = plan(part.num_prompts, part.num_prompts or _REHEARSED, 1, 0, config.seed)  # every row once
            rehearse(part, starts, seed=config.seed)
    return inputs


def run(
    config: Config, folder: RunFolder, tracker: Tracker, runtime: Runtime, inputs: Inputs | None = None
) -> dict[str, Any]:
    """Train the policy; return what the manifest keeps.

    Args:
        config: The configuration.
        folder: Holds the SFT policy and the reward model; the trained policy goes there.
        tracker: Gets curves and rollouts.
        runtime: Where models compute.
        inputs: From `prepare`, which is called now if there are none.

    Raises:
        StageError: No optimizer step could be taken.
        UserError: What is read cannot be used.
    """
    section, runtime = _section(config), runtime.for_model(config.model)
    inputs = inputs or prepare(config, policy_tokenizer(config))
    tokenizer = inputs.tokenizer
    policy = make_policy(config, folder, tokenizer)
    roles = Roles(policy, critic=make_critic(config, folder, tokenizer, policy))
    scorer = build_scorer(config, folder, runtime, policy)
    count = section.episodes_per_iteration // runtime.world_size
    source = make_source(config, inputs, scorer, policy.config, count=count)
    looker = Looker(tracker, section, TokenTexts(tokenizer))
    generator = TorchGenerator(
        policy,
        section.rollout,
        (int(tokenizer.eos_token_id),),
        tokenizer.decode,
        runtime,
        on_tokens=tracker.progress.count_tokens,
    )
    # Models are loaded before DeepSpeed is set up: whole.
    zero = deepspeed_config(config.distributed, bf16=runtime.bf16, max_gradient_norm=section.max_gradient_norm)
    seed, look, note = config.seed, looker.look, tracker.progress.note
    ppo = PPO(section, roles, source, generator, runtime, seed=seed, deepspeed=zero, on_iteration=look, on_phase=note)
    tracker.progress.start(section.iterations, unit="iterations")
    ppo.train()
    tracker.progress.load("saving")
    save_models(ppo, config, folder, tokenizer)
    last = {key: value for key, value in looker.metrics.items() if key in ("ppo/score", "ppo/kl")}
    return {"iterations": section.iterations, "episodes": ppo.progress.episodes, **last}


class Looker:
    """Hands each iteration to the tracker and moves the progress bar."""

    def __init__(self, tracker: Tracker, section: PPOSectionConfig, token_texts: TokenTexts) -> None:
        self.tracker, self.section, self.token_texts = tracker, section, token_texts
        self.metrics: dict[str, float] = {}  # of the last iteration

    def look(self, iteration: Iteration) -> None:
        """See `PPO.on_iteration`."""
        self.metrics = iteration.metrics
        rows = rollout_rows(
            iteration.episodes,
            trainable(iteration.episodes, self.section),
            iteration.batch,
            self.token_texts,
            self.metrics.get("ppo/kl_coefficient", 0.0),
        )
        self.tracker.log_rollouts(rows, iteration.number + 1)
        self.tracker.log(iteration.metrics, step=iteration.number + 1)
        shown = {name: self.metrics[f"ppo/{name}"] for name in ("score", "kl") if f"ppo/{name}" in self.metrics}
        self.tracker.progress.note("")
        self.tracker.progress.update(iteration.number + 1, **shown)


def _section(config: Config) -> PPOSectionConfig:
    if config.ppo is None:
        raise StageError("the config has no section ppo: add it, or choose another command")
    return config.ppo


def make_policy(config: Config, folder: RunFolder, tokenizer: PreTrainedTokenizerBase) -> nn.Module:
    """Load the policy that the SFT stage left, with fresh adapters if the model is fine-tuned through them."""
    policy: nn.Module = load_policy(config.model, tokenizer, folder=policy_folder(config, folder), seed=config.seed)
    if config.model.lora is not None:
        policy = add_adapters(policy, config.model.lora, "language_model", seed=config.seed, dropout=False)
    return policy


def make_critic(config: Config, folder: RunFolder, tokenizer: PreTrainedTokenizerBase, policy: nn.Module) -> Any:
    """Load the critic from the configured origin; None where the loop makes a new one on the policy's trunk."""
    whole = _section(config)
    section = whole.critic
    if not ESTIMATORS[whole.advantage].uses_critic:
        return None
    if section.type != "separate":
        return load_critic(section.path, policy) if section.path is not None else None
    if section.path is None and section.init == "policy":
        trunk = load_policy(config.model, tokenizer, folder=policy_folder(config, folder), seed=config.seed)
        critic: Any = load_sequence_classifier(trunk, tokenizer, seed=config.seed)
        nn.init.zeros_(critic.score.weight)  # the first values are 0
        return critic
    if section.path is not None:
        origin: Any = section.path
        critic = load_critic(origin)
    else:
        origin = whole.rewards["reward_model"].path or folder.reward
        critic = load_sequence_classifier(origin, tokenizer, seed=config.seed)
    if critic.config.vocab_size != len(tokenizer) and critic.get_input_embeddings().num_embeddings < len(tokenizer):
        raise StageError(
            f"the critic is to start from {origin}, which has another vocabulary than the policy: a critic reads the "
            "policy's tokens. Set ppo.critic.init to policy and ppo.critic.path to null."
        )
    return critic


def load_prompts(config: Config, tokenizer: PreTrainedTokenizerBase) -> Sequence[Prompt] | None:
    """Load the prompts of `ppo.data`, each no longer than `rollout.max_prompt_tokens`.

    Raises:
        DataError: The data cannot be read, or a row is bad and `on_bad_row` is "error".
    """
    section = _section(config)
    if section.data is None:
        return None
    most = section.rollout.max_prompt_tokens
    rows = load_rows(
        section.data, "prompts", encode=lambda prompt, _: Tokens(encode_prompt(tokenizer, prompt)), max_tokens=most
    )
    report_rows("ppo", rows)
    return rows.train


def make_source(
    config: Config, inputs: Inputs, scorer: CombinedReward | None, model_config: PretrainedConfig, *, count: int
) -> EnvironmentSource | MixedSource:
    """Build the environments; `count` episodes are played side by side."""
    return training_source(
        config,
        inputs.tokenizer,
        scorer,
        prompts=inputs.prompts,
        count=count,
        max_positions=readable_tokens(config, inputs.tokenizer, model_config),
    )


def save_models(ppo: PPO, config: Config, folder: RunFolder, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the policy, adapters merged, and the critic in a subfolder."""
    weights = full_state(ppo.actor_critic, trainable_only=True)
    forget_zero()
    trained = Trained(policy_part(weights), steps=ppo.progress.iteration)
    save(trained, lambda: make_policy(config, folder, tokenizer), tokenizer, folder.ppo)
    if ppo.accelerator.is_main_process:
        save_critic(ppo.actor_critic, weights, tokenizer, folder.ppo / "critic")
    barrier()
