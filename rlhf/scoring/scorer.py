"""The score of a run: its configured reward components, ready to be called.

Between the reward stage and everything that scores responses (PPO, evaluation). It finds and loads; how values are
combined is `reward_models.combine`'s matter.
"""

from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from reward_models.combine import CombinedReward, Component
from reward_models.protocol import RewardFunction
from reward_models.registry import load_function
from reward_models.scalar import ScalarRewardModel, check_reward_model
from rlhf.config.ppo import RewardComponentConfig
from rlhf.config.schema import Config
from rlhf.errors import StageError
from rlhf.files.run_folder import RunFolder
from rlhf.launch.runtime import Runtime
from rlhf.scoring.shared_reward import load_shared_reward_model

__all__ = ["build_scorer", "load_reward_model", "rehearsal_scorer"]


def build_scorer(config: Config, folder: RunFolder, runtime: Runtime, policy: Any = None) -> CombinedReward | None:
    """Load the components of `ppo.rewards`.

    Args:
        config: `ppo.rewards`, and the precision of the models.
        folder: Where the run's own reward model lies.
        runtime: Where models compute.
        policy: In training, the policy whose trunk the reward model may share. Without it, the reward model is loaded
            by itself in any case; the scores are the same.

    Returns:
        The score; None if there are no components, because the environment gives all rewards itself.

    Raises:
        StageError: The reward stage has not run, or a reward model cannot be found.
        RewardError: A function or model is not what a component must be.
    """
    if config.ppo is None or not config.ppo.rewards:
        return None
    return CombinedReward(
        [
            Component(
                name=name,
                function=_load(name, component, config, folder, runtime, policy),
                weight=component.weight,
                on_error=component.on_error,
                timeout_seconds=component.timeout_seconds,
            )
            for name, component in config.ppo.rewards.items()
        ]
    )


def rehearsal_scorer(config: Config) -> CombinedReward | None:
    """Load the reward functions alone, and look whether the configured reward models are there.

    Returns:
        The score as far as functions make it; None if there are none with a weight.

    Raises:
        StageError: A reward model cannot be found.
        RewardError: A function or model is not what a component must be.
    """
    rewards = config.ppo.rewards if config.ppo is not None else {}
    for name, component in rewards.items():
        if component.path is not None:
            check_reward_model(_find_model(name, component.path))
    functions = [
        Component(
            name=name,
            function=load_function(component.function, component.args),
            weight=component.weight,
            on_error=component.on_error,
            timeout_seconds=component.timeout_seconds,
        )
        for name, component in rewards.items()
        if component.function is not None
    ]
    return CombinedReward(functions) if any(component.weight for component in functions) else None


def load_reward_model(config: Config, folder: RunFolder, runtime: Runtime) -> ScalarRewardModel:
    """Load the run's own reward model in its configured precision.

    Raises:
        StageError: The reward stage has not run.
    """
    if not (folder.reward / "config.json").is_file():
        raise StageError(
            f"{folder.reward} has no reward model yet: run `rlhf reward` first, or `rlhf run` for all stages. "
            "To score with another model, give ppo.rewards.reward_model.path"
        )
    own = config.reward.model if config.reward is not None and config.reward.model is not None else config.model
    return _from_folder(folder.reward, runtime.for_model(own))


def _load(
    name: str, component: RewardComponentConfig, config: Config, folder: RunFolder, runtime: Runtime, policy: Any
) -> RewardFunction:
    if component.function is not None:
        return load_function(component.function, component.args)
    if component.path is not None:
        return _from_folder(_find_model(name, component.path), runtime.for_model(config.model))
    if component.share_trunk and policy is not None:
        return load_shared_reward_model(folder.reward, policy, runtime.for_model(config.model))
    return load_reward_model(config, folder, runtime)


def _find_model(name: str, path: str) -> Path:
    """The folder of a configured reward model, downloaded if it is the Hub's."""
    local = Path(path).expanduser()
    if local.is_dir():
        return local
    if local.is_absolute() or path.startswith(".") or path.count("/") > 1:  # cannot be a Hub id
        raise StageError(f"ppo.rewards.{name}.path is {path}: no such folder. Relative paths start at {Path.cwd()}")
    try:
        return Path(snapshot_download(path))
    except Exception as error:  # of many kinds: the Hub's, the network's and the file system's
        raise StageError(
            f"ppo.rewards.{name}.path is {path}: no such folder in {Path.cwd()}, and as a model of the Hub it cannot "
            f"be loaded: {type(error).__name__}: {error}"
        ) from error


def _from_folder(path: Path, runtime: Runtime) -> ScalarRewardModel:
    device = str(runtime.device)
    return ScalarRewardModel.from_folder(path, device=device, dtype="bfloat16" if runtime.bf16 else "float32")
