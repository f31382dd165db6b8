"""One policy on the configured environments, without any training: `rlhf evaluate CONFIG --policy PATH`.

The policy answers the same prompts, in the same way, as those of a before-and-after comparison (`stages.evaluate`).
What is measured stands in `rlhf.evaluation.single`. One process does it.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from rlhf.config.model import ModelConfig
from rlhf.config.schema import Config
from rlhf.episodes.episode import Episode
from rlhf.evaluation.held_out import groups_of, held_out, held_out_prompts
from rlhf.evaluation.paired import Design
from rlhf.evaluation.single import describe, describe_groups
from rlhf.files.atomic import write_text
from rlhf.files.run_folder import RunFolder
from rlhf.generation.torch_generator import TorchGenerator
from rlhf.launch.runtime import Runtime
from rlhf.models.load import load_policy, load_tokenizer
from rlhf.scoring.limits import readable_tokens
from rlhf.scoring.scorer import build_scorer
from rlhf.tracking.progress import StageProgress

__all__ = ["evaluate_policy", "write_result"]


def evaluate_policy(config: Config, policy: str, folder: RunFolder) -> dict[str, Any]:
    """Let a policy answer, and measure it.

    Args:
        config: Sections `ppo` (environments, rewards, sampling) and `evaluate`.
        policy: Folder, Hub id, `.gguf` file or `package:NAME`, as in `model.path`.
        folder: The run whose own reward model scores, if `ppo.rewards` asks for it.

    Returns:
        What was asked and how, `metrics`, `groups` (None if there is one only) and `responses`.

    Raises:
        UserError: The policy cannot be loaded, what scores responses is missing, or there is nothing to ask.
    """
    assert config.evaluate is not None
    assert config.ppo is not None
    section = config.evaluate
    model = _model_of(config, policy)
    runtime = Runtime.detect(config.runtime)
    tokenizer = load_tokenizer(model)
    with StageProgress("evaluate") as progress:
        progress.start(total=2)
        progress.note(f"{policy} is loaded")
        loaded: Any = load_policy(model, tokenizer, seed=config.seed).to(runtime.device).eval()
        scorer = build_scorer(config, folder, runtime)
        positions = readable_tokens(config, tokenizer, loaded.config)
        asked = held_out(config, tokenizer, scorer, held_out_prompts(config, tokenizer), positions)
        rollout = config.ppo.rollout
        sampling = rollout.model_copy(update={"temperature": section.temperature or rollout.temperature})
        stop, own_runtime = (int(tokenizer.eos_token_id),), runtime.for_model(model)
        generator = TorchGenerator(loaded, sampling, stop, tokenizer.decode, own_runtime)
        generator.update()
        progress.update(1)
        progress.note("it answers")
        episodes = asked.play(generator, config.seed)
        progress.update(2)
    design = Design(section.samples_per_prompt, section.bootstrap_resamples, config.seed)
    groups = groups_of(episodes, config)
    return {
        "policy": policy,
        "prompts": asked.prompts,
        "asked": asked.asked,
        "samples_per_prompt": section.samples_per_prompt,
        "seed": config.seed,
        "temperature": sampling.temperature,
        "max_response_tokens": section.max_response_tokens or rollout.max_response_tokens,
        "success_score": section.success_score,
        "failures": asked.failures,
        "failed_episodes": sum(episode.failure is not None for episode in episodes),
        "metrics": describe(episodes, design, section.success_score),
        "groups": None if groups is None else describe_groups(episodes, groups, design, section.success_score),
        "responses": [_known(episode) for episode in episodes],
    }


def write_result(result: dict[str, Any], path: Path) -> None:
    """Write what `evaluate_policy` returned, as JSON."""
    write_text(path, json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False, default=str) + "\n")


def _model_of(config: Config, policy: str) -> ModelConfig:
    """The `model` section of a policy that is given by its path; template and precision are the configuration's."""
    keys = ("chat_template", "dtype", "trust_remote_code")
    kept = {key: getattr(config.model, key) for key in keys}
    return ModelConfig.model_validate({"path": policy, **kept})


def _known(episode: Episode) -> dict[str, Any]:
    return {
        "environment": episode.environment,
        "index": episode.index,
        "sample_index": episode.sample_index,
        "messages": episode.messages,
        "columns": episode.columns,
        "score": _finite(episode.score),
        "components": {name: _finite(value) for name, value in episode.components.items()},
        "tokens": episode.response_length,
        "stop_reason": episode.stop_reason,
        "failure": episode.failure,
    }


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
