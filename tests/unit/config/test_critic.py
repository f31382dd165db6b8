"""Keys about critics and shared trunks: what does not go together is refused before anything loads."""

from pathlib import Path

import pytest

from rlhf.config.load import load_config
from rlhf.config.ppo import CriticConfig
from rlhf.errors import ConfigError
from rlhf.run.fingerprint import fingerprints

LORA = "model: {path: m, lora: {rank: 4}}\n"
SHARING = "reward: {data: r.jsonl}\nppo:\n  data: p.jsonl\n  rewards: {reward_model: {share_trunk: true}}\n"

MISTAKES = {
    "adapter without LoRA": (
        "model: {path: m}\nppo:\n  data: p.jsonl\n  rewards: {r: {function: length}}\n  critic: {type: adapter}\n",
        "line 5: ppo.critic.type is adapter, but model.lora is null: an adapter critic runs on the frozen trunk of a "
        "LoRA policy. Set model.lora (for example {rank: 16, alpha: 32}), or ppo.critic.type to separate or shared",
    ),
    "misspelt type": (
        LORA + "ppo:\n  data: p.jsonl\n  rewards: {r: {function: length}}\n  critic: {type: adaptor}\n",
        "line 5: ppo.critic.type: got 'adaptor' (text); allowed: one of separate, shared, adapter; did you "
        "mean adapter?",
    ),
    "reward model's weights for a head": (
        LORA + SHARING + "  critic: {type: shared, init: reward_model}\n",
        "line 6: ppo.critic: init reward_model is for a critic with a trunk of its own, not for type shared: set type "
        "to separate, or init to policy",
    ),
    "two starts": (
        LORA + SHARING + "  critic: {init: reward_model, path: c}\n",
        "line 6: ppo.critic: init reward_model and path c are two starts: set init to policy, or remove path",
    ),
    "sharing a trunk that moves": (
        "model: {path: m}\n" + SHARING,
        "line 5: ppo.rewards.reward_model.share_trunk is true, but model.lora is null: both must be adapters on one "
        "frozen trunk. Set model.lora, or set ppo.rewards.reward_model.share_trunk to false",
    ),
    "sharing another backbone": (
        LORA + SHARING.replace("r.jsonl", "r.jsonl, model: {path: n, lora: {rank: 4}}"),
        "line 5: ppo.rewards.reward_model.share_trunk is true, but reward.model names another backbone. Remove it: the "
        "reward model then starts from the policy, or set ppo.rewards.reward_model.share_trunk to false",
    ),
    "sharing under ZeRO-3": (
        LORA + SHARING + "distributed: {zero: 3}\n",
        "line 5: ppo.rewards.reward_model.share_trunk is true, but distributed.zero is 3, which spreads the trunk over "
        "processes that score different numbers of responses. Set distributed.zero to 2 or less, or set "
        "ppo.rewards.reward_model.share_trunk to false",
    ),
    "sharing with another model": (
        LORA + SHARING.replace("share_trunk: true", "share_trunk: true, path: other"),
        "line 5: ppo.rewards.reward_model: share_trunk true is for the run's own reward model, which has no path: "
        "remove path, or set share_trunk to false",
    ),
    "sharing with a function": (
        LORA + SHARING.replace("share_trunk: true", "share_trunk: true, function: length"),
        "line 5: ppo.rewards.reward_model: share_trunk true is for the run's own reward model, which has no function: "
        "remove function, or set share_trunk to false",
    ),
    "sharing with a call that is given up": (
        LORA + SHARING.replace("share_trunk: true", "share_trunk: true, timeout_seconds: 2"),
        "line 5: ppo.rewards.reward_model: timeout_seconds 2 does not go with share_trunk: a call that is given up "
        "would go on using the policy's trunk. Set it to null, or share_trunk to false",
    ),
}


def load(folder: Path, text: str):
    path = folder / "my.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path).config


@pytest.mark.parametrize("name", MISTAKES)
def test_what_does_not_go_together_is_one_mistake(name: str, tmp_path: Path):
    text, expected = MISTAKES[name]
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert str(caught.value).splitlines()[1:] == [f"  {expected}"]


@pytest.mark.parametrize("zero", ["null", "0", "2"])
def test_what_goes_together_is_accepted(tmp_path: Path, zero: str):
    config = load(
        tmp_path, LORA + SHARING + "  critic: {type: adapter, path: c}\n" + f"distributed: {{zero: {zero}}}\n"
    )
    assert config.ppo.critic == CriticConfig(type="adapter", path="c")
    assert config.ppo.rewards["reward_model"].share_trunk is True
    default = load(tmp_path, "model: {path: m}\n" + SHARING.replace("share_trunk: true", ""))
    assert default.ppo.rewards["reward_model"].share_trunk is False
    assert default.ppo.critic == CriticConfig(type="separate", init="policy", path=None)


def test_a_critics_folder_is_found_beside_the_config_and_its_content_counts(tmp_path: Path):
    data = tmp_path / "p.jsonl"
    data.write_text('{"prompt": "say red"}\n')
    (tmp_path / "m").mkdir()
    folder = tmp_path / "c"
    text = "model: {path: m}\nppo:\n  data: p.jsonl\n  rewards: {r: {function: length, args: {minimum_words: 1}}}\n"
    text += "  critic: {path: c}\n"
    with pytest.raises(ConfigError, match=r"ppo\.critic\.path is c: no such folder.* Name the critic folder beside"):
        fingerprints(load(tmp_path, text))
    folder.mkdir()
    seen = []
    for content in ("one", "two"):
        (folder / "value_head.pt").write_text(content)
        config = load(tmp_path, text)
        assert config.ppo.critic.path == str(folder)
        seen.append(fingerprints(config)["ppo"][0])
    assert seen[0] != seen[1]
