"""Reading a config: values, where they came from, overrides, relative paths, and the resolved file."""

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rlhf.config.load import LoadedConfig, load_config, save_resolved
from rlhf.config.yaml_reader import format_value, parse_scalar

CONFIG = """\
name: good
model: &policy
  path: org/name
  lora: {rank: 4, dropout: 0.1}
sft:
  data: {path: d.jsonl, columns: {prompt: question}, max_rows: 9}
  learning_rate: 1e-5
reward:
  data: pairs.jsonl
  model:
    <<: *policy
    lora: {alpha: 3, target_modules: [q_proj, v_proj]}
ppo:
  data:
    sources:
      - path: a.jsonl
      - {path: b.jsonl, weight: 2}
    test_fraction: 0.25
  rewards:
    reward_model: {weight: 0.5}
    own: {function: "rewards.py:polite", args: {words: ["a: b", "1e-5", "on"], deep: [{x: null}, [1, 2]]}}
evaluate: {}
"""


@pytest.fixture
def load(tmp_path: Path):
    def from_text(text: str, *overrides: str) -> LoadedConfig:
        path = tmp_path / "my.yaml"
        path.write_text(text, encoding="utf-8")
        return load_config(path, overrides)

    return from_text


def test_values_reach_the_config(load):
    config = load(CONFIG).config
    assert config.sft is not None
    assert config.sft.learning_rate == 1e-5
    assert config.sft.data.sources[0].columns == {"prompt": "question"}
    assert config.sft.data.max_rows == 9
    assert config.reward is not None
    assert [source.path for source in config.reward.data.sources] == ["pairs.jsonl"]


def test_a_merged_anchor_gives_what_the_section_does_not_say_itself(load):
    loaded = load(CONFIG)
    model = loaded.config.reward.model
    assert model.path == "org/name"
    assert (model.lora.rank, model.lora.dropout, model.lora.alpha) == (8, 0.0, 3.0)  # lora is replaced as a whole
    assert loaded.provenance["reward.model.path"] == "my.yaml:3"
    assert loaded.provenance["reward.model.lora.alpha"] == "my.yaml:12"
    assert loaded.provenance["reward.model.lora.rank"] == "default"


def test_provenance_names_line_default_or_override(load):
    provenance = load(CONFIG, "ppo.kl.coefficient=0.2", "seed=3").provenance
    expected = {
        "name": "my.yaml:1",
        "runs_dir": "default",
        "seed": "override",
        "model.lora.rank": "my.yaml:4",
        "model.lora.alpha": "default",
        "sft.data.sources.0.path": "my.yaml:6",
        "sft.data.sources.0.columns.prompt": "my.yaml:6",
        "sft.data.sources.0.weight": "default",
        "sft.data.max_rows": "my.yaml:6",
        "reward.data.sources.0.path": "my.yaml:9",
        "reward.data.sources.0.weight": "default",
        "reward.model.lora.target_modules": "my.yaml:12",
        "ppo.data.sources.1.weight": "my.yaml:17",
        "ppo.kl.coefficient": "override",
        "ppo.kl.target": "default",
    }
    assert {key: provenance[key] for key in expected} == expected


def test_provenance_covers_every_value(load):
    loaded = load(CONFIG)
    keys = set(loaded.provenance)
    assert {"evaluate.data", "tracking.wandb.mode", "distributed.deepspeed", "ppo.rewards.own.args.deep.0.x"} <= keys
    assert not any(key in keys for key in ("model", "sft.data", "ppo.rewards", "evaluate"))


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("ppo.learning_rate=3e-6", lambda c: c.ppo.learning_rate, 3e-6),
        ("tracking.tensorboard=false", lambda c: c.tracking.tensorboard, False),
        ("model.revision=", lambda c: c.model.revision, None),
        ("model.revision='7'", lambda c: c.model.revision, "7"),
        ("tracking.wandb.tags=[a, b c]", lambda c: c.tracking.wandb.tags, ["a", "b c"]),
        ("reward=null", lambda c: c.reward, None),
        ("sft.data=other.csv", lambda c: c.sft.data.sources[0].path, "other.csv"),
        ("sft.data.path=other.csv", lambda c: c.sft.data.sources[0].path, "other.csv"),
        ("sft.data.sources.0.path=other.csv", lambda c: c.sft.data.sources[0].path, "other.csv"),
        ("sft.data.max_rows=3", lambda c: c.sft.data.max_rows, 3),
        ("ppo.data.sources.1.weight=5", lambda c: [s.weight for s in c.ppo.data.sources], [1.0, 5.0]),
        ("ppo.data.sources.2={path: c}", lambda c: [s.path for s in c.ppo.data.sources], ["a.jsonl", "b.jsonl", "c"]),
        ("ppo.data.sources.2.path=c", lambda c: [s.path for s in c.ppo.data.sources], ["a.jsonl", "b.jsonl", "c"]),
        ("ppo.rewards.short.function=length", lambda c: list(c.ppo.rewards), ["reward_model", "own", "short"]),
        ("ppo.rewards.own.args.words=[x]", lambda c: c.ppo.rewards["own"].args["words"], ["x"]),
        ("distributed.deepspeed.zero.x=1", lambda c: c.distributed.deepspeed, {"zero": {"x": 1}}),
        ("name=a=b", lambda c: c.name, None),
    ],
)
def test_overrides(load, override, read, value):
    if override == "name=a=b":  # only the first = divides
        with pytest.raises(Exception, match="got 'a=b'"):
            load(CONFIG, override)
        return
    shared = ("ppo.rewards.reward_model.path=x", "distributed.zero=2")
    assert read(load(CONFIG, *shared, override).config) == value


def test_the_last_override_wins_and_marks_all_that_it_replaces(load):
    loaded = load(CONFIG, "sft.data.columns={prompt: a, completion: b}", "sft.data.columns={prompt: c}")
    assert loaded.config.sft.data.sources[0].columns == {"prompt": "c"}
    assert loaded.provenance["sft.data.sources.0.columns.prompt"] == "override"
    assert "sft.data.sources.0.columns.completion" not in loaded.provenance


def test_a_config_may_consist_of_overrides():
    loaded = load_config(None, ["model.path=org/name"])
    assert loaded.config.model.path == "org/name"
    assert loaded.path is None


def test_the_resolved_file_loads_as_the_same_config(load, tmp_path: Path):
    loaded = load(CONFIG, "ppo.kl.coefficient=0.2")
    path = tmp_path / "run" / "config.yaml"
    save_resolved(loaded, path)
    assert load_config(path).config == loaded.config
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == loaded.config.model_dump()  # any reader of YAML
    assert [entry.name for entry in path.parent.iterdir()] == ["config.yaml"]


def test_each_value_of_the_resolved_file_says_where_it_came_from(load, tmp_path: Path):
    path = tmp_path / "config.yaml"
    save_resolved(load(CONFIG, "ppo.kl.coefficient=0.2"), path)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert "name: good  # my.yaml:1" in lines
    assert "seed: 0  # default" in lines
    assert "    coefficient: 0.2  # override" in lines
    assert "      - path: a.jsonl  # my.yaml:16" in lines
    assert all("  # " in line or line.endswith(":") for line in lines[1:])


def test_relative_paths_begin_here_and_then_beside_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    beside, here = tmp_path / "study", tmp_path / "here"
    for folder, names in ((beside, ("a.jsonl", "b.jsonl", "rewards.py", "chat.jinja")), (here, ("b.jsonl",))):
        folder.mkdir()
        for name in names:
            (folder / name).touch()
    (beside / "base").mkdir()
    (beside / "my.yaml").write_text(
        "model: {path: base, chat_template: chat.jinja}\nsft: {data: {sources: [{path: a.jsonl}, {path: b.jsonl}]}}\n"
        "ppo:\n  data: org/dataset\n  rewards:\n    own: {function: 'rewards.py:polite'}\n"
        "    rule: {function: length}\n    module: {function: 'rewards:polite'}\n"
        "    absolute: {path: /nowhere/model}\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(here)
    config = load_config(Path("../study/my.yaml")).config
    assert config.model.path == os.path.join("..", "study", "base")
    assert config.model.chat_template == os.path.join("..", "study", "chat.jinja")
    assert [source.path for source in config.sft.data.sources] == ["../study/a.jsonl", "b.jsonl"]
    assert config.ppo.data.sources[0].path == "org/dataset"
    assert {name: entry.function for name, entry in config.ppo.rewards.items()} == {
        "own": "../study/rewards.py:polite",
        "rule": "length",
        "module": "rewards:polite",
        "absolute": None,
    }
    assert config.ppo.rewards["absolute"].path == "/nowhere/model"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1.5E+3", 1500.0),
        (".5", 0.5),
        ("10_000", 10_000),
        ("-3", -3),
        ("true", True),
        ("~", None),
        ("", None),
        ("on", "on"),
        ("no", "no"),
        ("010", "010"),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("0x10", "0x10"),
        ("'5'", "5"),
        ("[1, {a: b}]", [1, {"a": "b"}]),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    parsed = parse_scalar(text)
    assert parsed == value
    assert type(parsed) is type(value)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=6)


@given(VALUES)
def test_a_formatted_value_is_one_line_that_reads_back(value):
    text = format_value(value)
    assert len(text.splitlines()) == 1
    assert parse_scalar(text) == value
    assert yaml.safe_load(f"key: {text}  # comment") == {"key": value}
