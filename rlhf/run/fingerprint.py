"""What the result of each stage depends on. `pipeline.py` compares it with what the manifest remembers.

    sft       model, sft, seed (from scratch: the data of all stages, which train the tokenizer)
    reward    sft or model, reward, seed
    ppo       sft or model, reward if its model is a component or the critic's origin, ppo, seed
    evaluate  the stages above, evaluate, seed

Data count by content alone, not by name or place (those of the Hub by name and commit); reward functions, environments
and local models by name and content.
`name`, `runs_dir`, `tracking`, `distributed` and `runtime` change no result and count nowhere.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from rlhf.config.data import DataConfig
from rlhf.config.model import ModelConfig
from rlhf.config.ppo import PPOSectionConfig
from rlhf.config.schema import Config
from rlhf.data import content_hash
from rlhf.errors import ConfigError
from rlhf.files.hashes import file_hash
from rlhf.files.run_folder import STAGES
from rlhf.run.sources import code_hash, model_hash


@dataclass(frozen=True)
class Input:
    """One thing that a result depends on.

    Attributes:
        name: The same in every run: a dotted key, or `stage NAME`.
        value: The key's value as JSON, or a hash.
        label: What a message calls it.
        shows_value: Whether the value tells a reader something.
    """

    name: str
    value: str
    label: str
    shows_value: bool = False


def configured_stages(config: Config) -> list[str]:
    """The stages of a run, in order."""
    return [stage for stage in STAGES if getattr(config, stage) is not None]


def upstream_of(config: Config, stage: str) -> list[str]:
    """The stages whose output `stage` reads."""
    read = {
        "sft": [],
        "reward": ["sft"],
        "ppo": ["sft", *(["reward"] if _uses_reward_stage(config) else [])],
        "evaluate": ["sft", "ppo", *(["reward"] if _uses_reward_stage(config) else [])],
    }[stage]
    return [name for name in configured_stages(config) if name in read]


def fingerprints(config: Config) -> dict[str, tuple[str, list[Input]]]:
    """Stage -> fingerprint and inputs, for all configured stages.

    Raises:
        UserError: A data file, function or model that the configuration names cannot be found.
    """
    found: dict[str, tuple[str, list[Input]]] = {}
    for stage in configured_stages(config):
        upstream = upstream_of(config, stage)
        inputs = [*_own_inputs(config, stage, upstream)]
        inputs += [Input(f"stage {name}", found[name][0], f"stage {name}") for name in upstream]
        pairs = json.dumps(sorted((entry.name, entry.value) for entry in inputs))
        found[stage] = (sha256(pairs.encode()).hexdigest(), inputs)
    return found


def changes(before: dict[str, str], now: Sequence[Input]) -> list[str]:
    """What differs between the inputs of a finished stage and those of now, in words."""
    found = []
    for entry in now:
        if entry.name not in before:
            found.append(f"{entry.label} is new")
        elif before[entry.name] != entry.value:
            values = f" ({before[entry.name]} -> {entry.value})" if entry.shows_value else ""
            found.append(f"{entry.label} changed{values}")
    return found + [f"{name} is gone" for name in before if name not in {entry.name for entry in now}]


def _own_inputs(config: Config, stage: str, upstream: Sequence[str]) -> Iterator[Input]:
    section = getattr(config, stage)
    yield Input("seed", str(config.seed), "seed", shows_value=True)
    yield from _keys(stage, section.model_dump())
    if "sft" not in upstream:
        yield from _keys("model", config.model.model_dump())
        yield from _model_files("model", config.model)
    own_model = getattr(section, "model", None)
    if own_model is not None:
        yield from _model_files(f"{stage}.model", own_model)
    trains_tokenizer = ("sft" not in upstream and config.model.architecture is not None) or (
        own_model is not None and own_model.architecture is not None
    )
    for name in configured_stages(config):
        data = getattr(config, name).data
        if data is not None and (name == stage or trains_tokenizer):
            yield from _data_files(f"{name}.data", data)
            if name != stage:
                yield from _keys(f"{name}.data", data.model_dump())
    if isinstance(section, PPOSectionConfig):
        for each in section.mixture:
            if each.test_fraction is None and (share := config.held_out_fraction(each)):  # it depends on `evaluate`
                yield Input(f"test_fraction of {each.label} by default", str(share), "held-out rows")
        yield from _reward_files(section)
        yield from _critic_files(section)


def _keys(prefix: str, value: Any) -> Iterator[Input]:
    """The values of a section; paths of data sources are left to the hash of their content."""
    if isinstance(value, dict) and value:
        for key, entry in value.items():
            yield from _keys(f"{prefix}.{key}", entry)
    elif isinstance(value, list) and prefix.endswith(".data.sources"):
        for index, source in enumerate(value):
            yield from _keys(f"{prefix}.{index}", {key: source[key] for key in source if key != "path"})
    else:
        yield Input(prefix, json.dumps(value, sort_keys=True, default=str), prefix, shows_value=True)


def _data_files(name: str, data: DataConfig) -> Iterator[Input]:
    for index, source in enumerate(data.sources):
        one = data.model_copy(update={"sources": [source]})
        yield Input(f"content of {name}.sources.{index}", content_hash(one), f"data {source.path}")


def _model_files(name: str, model: ModelConfig) -> Iterator[Input]:
    if model.path is not None and (digest := model_hash(model.path)) is not None:
        yield Input(f"content of {name}.path", digest, f"model {model.path}")
    template = Path(model.chat_template)
    if template.suffix == ".jinja" and template.is_file():
        yield Input(f"content of {name}.chat_template", file_hash(template), f"chat template {template}")


def _reward_files(section: PPOSectionConfig) -> Iterator[Input]:
    for name, component in section.rewards.items():
        key = f"ppo.rewards.{name}"
        if component.function is not None and (digest := code_hash(component.function)) is not None:
            yield Input(f"content of {key}.function", digest, f"source of reward function {component.function}")
        if component.path is not None and (digest := model_hash(component.path)) is not None:
            yield Input(f"content of {key}.path", digest, f"reward model {component.path}")
    for each in section.mixture:
        if ":" in each.id and (digest := code_hash(each.id)) is not None:
            yield Input(f"content of environment {each.label}", digest, f"source of environment {each.id}")


def _critic_files(section: PPOSectionConfig) -> Iterator[Input]:
    path = section.critic.path
    if path is None:
        return
    digest = model_hash(path)
    if digest is None:
        raise ConfigError(
            f"ppo.critic.path is {path}: no such folder. Relative paths start at {Path.cwd()}. Name the critic folder "
            "beside a trained policy, or remove the key"
        )
    yield Input("content of ppo.critic.path", digest, f"critic {path}")


def _uses_reward_stage(config: Config) -> bool:
    own = config.ppo.rewards.get("reward_model") if config.ppo is not None else None
    return own is not None and own.function is None and own.path is None
