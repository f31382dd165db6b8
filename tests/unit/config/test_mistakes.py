"""Every mistake that a config can hold, each with the whole message that the user reads."""

from pathlib import Path

import pytest

from rlhf.config.load import load_config
from rlhf.errors import ConfigError

DATA_KEYS = "sources, on_bad_row, validation_fraction, test_fraction, fold_system, max_rows, subset"
PPO = "model: {path: m}\nppo:\n  data: {path: p.jsonl}\n  rewards: {polite: {function: length}}\n"

# Text of the file, what the message says about it.
MISTAKES = {
    # unknown keys
    "misspelt section": (
        "model: {path: m}\ntrackng: {}\n",
        "line 2: trackng: unknown key; did you mean tracking?",
    ),
    "misspelt key": (
        "model: {path: m}\nsft:\n  data: d.jsonl\n  learning_rte: 1e-5\n",
        "line 4: sft.learning_rte: unknown key; did you mean learning_rate?",
    ),
    "deeply nested misspelt key": (
        "model:\n  path: m\n  lora:\n    rank: 4\n    alhpa: 8\n",
        "line 5: model.lora.alhpa: unknown key; did you mean alpha?",
    ),
    "dashes for underscores": (
        "model: {path: m}\nsft:\n  data: d.jsonl\n  Batch-Size: 8\n",
        "line 4: sft.Batch-Size: unknown key; did you mean batch_size?",
    ),
    "key of another section": (
        "model: {path: m}\nclip_range: 0.1\n",
        "line 2: clip_range: unknown key here; did you mean ppo.clip_range?",
    ),
    "key of several sections": (
        "model: {path: m}\ncolumns: {}\n",
        "line 2: columns: unknown key here; did you mean sft.data.sources.0.columns or reward.data.sources.0.columns "
        "or ppo.data.sources.0.columns or evaluate.data.sources.0.columns?",
    ),
    "key like one of another section": (
        "model: {path: m}\ntracking:\n  gae_lamda: 1\n",
        "line 3: tracking.gae_lamda: unknown key (elsewhere there is gae_lambda); allowed here: wandb, tensorboard, "
        "report, rollout_rows_per_table",
    ),
    "key like no other": (
        "model: {path: m}\ntracking:\n  qqq: 1\n",
        "line 3: tracking.qqq: unknown key; allowed here: wandb, tensorboard, report, rollout_rows_per_table",
    ),
    "misspelt key of a short data section": (
        "model: {path: m}\nsft:\n  data: {path: d.jsonl, colums: {}}\n",
        "line 3: sft.data.colums: unknown key; did you mean columns?",
    ),
    "misspelt key of a reward component": (
        "model: {path: m}\nppo:\n  data: p.jsonl\n  rewards:\n    polite:\n      function: length\n      wieght: 2\n",
        "line 7: ppo.rewards.polite.wieght: unknown key; did you mean weight?",
    ),
    "misspelt key in a list": (
        "model: {path: m}\nsft:\n  data:\n    sources:\n      - path: a.jsonl\n      - path: b\n        splt: x\n",
        "line 7: sft.data.sources.1.splt: unknown key; did you mean split?",
    ),
    # missing keys
    "nothing at all": (
        "",
        "model: missing; it is required (The policy.): a section with the keys path, revision, trust_remote_code, "
        "architecture, tokenizer, chat_template, dtype, num_layers, lora",
    ),
    "required key missing": (
        "model: {path: m}\nsft:\n  epochs: 2\n",
        "line 2: sft.data: missing; it is required (The stage's data.): a data path, or a section with the keys "
        f"{DATA_KEYS}",
    ),
    "required key of a list entry missing": (
        "model: {path: m}\nsft:\n  data:\n    sources:\n      - weight: 2\n",
        "line 5: sft.data.sources.0.path: missing; it is required (File (.jsonl, .json, .csv, .parquet), "
        "glob, folder, packaged:NAME, module:function or Hub id.): text",
    ),
    # wrong values
    "number for text": (
        "name: 3\nmodel: {path: m}\n",
        r"line 1: name: got 3; allowed: text of the form ^[\w.-]+$; the default is run",
    ),
    "text of the wrong form": (
        "name: my run\nmodel: {path: m}\n",
        r"line 1: name: got 'my run' (text); allowed: text of the form ^[\w.-]+$; the default is run",
    ),
    "quoted number": (
        'seed: "7"\nmodel: {path: m}\n',
        "line 1: seed: got '7' (text); allowed: an integer at least 0 and at most 4294967295; write numbers without "
        "quotes; the default is 0",
    ),
    "fraction for an integer": (
        "seed: 1.5\nmodel: {path: m}\n",
        "line 1: seed: got 1.5; allowed: an integer at least 0 and at most 4294967295; the default is 0",
    ),
    "more than generators of random numbers take": (
        "seed: 4294967296\nmodel: {path: m}\n",
        "line 1: seed: got 4294967296; allowed: an integer at least 0 and at most 4294967295; the default is 0",
    ),
    "true for an integer": (
        "seed: true\nmodel: {path: m}\n",
        "line 1: seed: got true; allowed: an integer at least 0 and at most 4294967295; the default is 0",
    ),
    "one for true": (
        "model: {path: m, trust_remote_code: 1}\n",
        "line 1: model.trust_remote_code: got 1; allowed: true or false; the default is false",
    ),
    "yes for true": (
        "model: {path: m, trust_remote_code: yes}\n",
        "line 1: model.trust_remote_code: got 'yes' (text); allowed: true or false; the default is false",
    ),
    "below the range": (
        PPO + "  clip_range: 0\n",
        "line 5: ppo.clip_range: got 0; allowed: a number above 0; the default is 0.2",
    ),
    "above the range": (
        PPO + "  gae_lambda: 1.1\n",
        "line 5: ppo.gae_lambda: got 1.1; allowed: a number at least 0 and at most 1; the default is 0.95",
    ),
    "at an open end of the range": (
        "model: {path: m}\nsft:\n  data: d.jsonl\n  warmup_fraction: 1\n",
        "line 4: sft.warmup_fraction: got 1; allowed: a number at least 0 and below 1; the default is 0.0",
    ),
    "wrong optional number": (
        "model:\n  path: m\n  num_layers: 0\n",
        "line 3: model.num_layers: got 0; allowed: an integer above 0, or null",
    ),
    "null where something is needed": (
        "model: {path: m}\nseed: null\n",
        "line 2: seed: got null; allowed: an integer at least 0 and at most 4294967295; the default is 0",
    ),
    "misspelt choice": (
        "model: {path: m, dtype: bf16}\n",
        "line 1: model.dtype: got 'bf16' (text); allowed: one of auto, float32, bfloat16; did you mean bfloat16?",
    ),
    "choice like no other": (
        PPO + "  kl: {controller: pid}\n",
        "line 5: ppo.kl.controller: got 'pid' (text); allowed: one of fixed, adaptive; the default is fixed",
    ),
    "choice of numbers": (
        "model: {path: m}\ndistributed: {zero: 4}\n",
        "line 2: distributed.zero: got 4; allowed: one of 0, 1, 2, 3, or null",
    ),
    "value for a section": (
        "model: SmolLM\n",
        "line 1: model: got 'SmolLM' (text); allowed: a section with the keys path, revision, trust_remote_code, "
        "architecture, tokenizer, chat_template, dtype, num_layers, lora",
    ),
    "list for a section": (
        "model: {path: m}\nsft: {data: [a.jsonl, b.jsonl]}\n",
        f"line 2: sft.data: got a list of 2; allowed: a data path, or a section with the keys {DATA_KEYS}",
    ),
    "text for a list": (
        PPO + "  rollout: {stop_strings: User}\n",
        "line 5: ppo.rollout.stop_strings: got 'User' (text); allowed: a list of texts",
    ),
    "number in a list of texts": (
        PPO + "  rollout:\n    stop_strings:\n      - 'User:'\n      - 3\n",
        "line 8: ppo.rollout.stop_strings.1: got 3; allowed: text",
    ),
    "empty list": (
        "model: {path: m}\nsft: {data: {sources: []}}\n",
        "line 2: sft.data.sources: got a list of 0; allowed: a list of sections with at least 1 entry",
    ),
    "neither of two forms": (
        "model: {path: m, lora: {target_modules: some}}\n",
        "line 1: model.lora.target_modules: got 'some' (text); allowed: a list of texts, or all-linear; the default is "
        "all-linear",
    ),
    "number as a column's name": (
        "model: {path: m}\nsft: {data: {path: d.jsonl, columns: {prompt: 3}}}\n",
        "line 2: sft.data.sources.0.columns.prompt: got 3; allowed: text",
    ),
    # keys that do not go together
    "no origin of the model": (
        "model: {dtype: float32}\n",
        "line 1: model: give exactly one of path (Hub id, folder, .gguf, package:NAME) and architecture",
    ),
    "heads that do not divide": (
        "model:\n  architecture:\n    hidden_size: 10\n    heads: 4\n",
        "line 3: model.architecture: hidden_size 10 must be a multiple of heads 4",
    ),
    "early stopping without validation rows": (
        "model: {path: m}\nsft:\n  data: {path: d.jsonl, validation_fraction: 0}\n  early_stopping_patience: 2\n",
        "line 4: sft: early_stopping_patience needs validation rows: raise data.validation_fraction above 0, or remove "
        "the key",
    ),
    "validation without validation rows": (
        "model: {path: m}\nreward:\n  data: {path: d.jsonl, validation_fraction: 0}\n  evaluate_every_steps: 2\n",
        "line 4: reward: evaluate_every_steps needs validation rows: raise data.validation_fraction above 0, or remove "
        "the key",
    ),
    "DeepSpeed's keys without DeepSpeed": (
        "model: {path: m}\ndistributed: {offload: true}\n",
        "line 2: distributed: offload has no effect without DeepSpeed: set zero to 0, 1, 2 or 3, or remove the key",
    ),
    "microbatches that do not divide": (
        "model: {path: m}\nsft:\n  data: d.jsonl\n  batch_size: 8\n  microbatch_size: 3\n",
        "line 4: sft: batch_size 8 must be a multiple of microbatch_size 3",
    ),
    "minibatches that do not divide": (
        PPO + "  minibatches: 5\n",
        "line 5: ppo: episodes_per_iteration 64 must be a multiple of minibatches 5",
    ),
    "one sample to compare": (
        PPO + "  advantage: rloo\n",
        "line 5: ppo: advantage rloo compares samples of one prompt: samples_per_prompt must be 2 or more",
    ),
    "weight of a component that does not exist": (
        "model: {path: m}\nppo:\n  data: p.jsonl\n  rewards:\n    politness: {weight: 0.5}\n",
        "line 5: ppo: rewards.politness is no component: give it function or path (only reward_model, this run's own, "
        "needs neither)",
    ),
    "nothing left for training": (
        "model: {path: m}\nsft: {data: {path: d.jsonl, validation_fraction: 0.5, test_fraction: 0.5}}\n",
        "line 2: sft.data: validation_fraction 0.5 + test_fraction 0.5 must be below 1",
    ),
    "reward model without its stage": (
        "model: {path: m}\nppo:\n  data: p.jsonl\n  rewards:\n    reward_model: {}\n",
        "line 5: ppo.rewards.reward_model: this run has no reward stage: add `reward`, or give a path",
    ),
    "evaluation without prompts": (
        PPO + "evaluate: {}\n",
        "line 5: evaluate.data is missing and ppo.data.test_fraction is 0: set one of them",
    ),
    "prompts for the evaluation of another environment": (
        "model: {path: m}\nppo: {environment: {id: a/B-v0}}\nevaluate: {data: d.jsonl}\n",
        "line 3: evaluate.data is read only by rlhf/Prompts-v0, not by a/B-v0: remove it. What is played are rows that "
        "training leaves out (test_fraction), or seeds of their own",
    ),
    "environment and environments": (
        "model: {path: m}\nppo:\n  environment: {id: a/B-v0}\n  environments: [{id: a/C-v0}]\n",
        "line 3: ppo: give environment or environments, not both",
    ),
    "an environment twice": (
        PPO + "  environments: [{id: rlhf/Prompts-v0}, {id: rlhf/Prompts-v0, max_turns: 2}]\n",
        "line 5: ppo: environments has rlhf/Prompts-v0 2 times: give each a name of its own",
    ),
    "prompts that no environment of several reads": (
        "model: {path: m}\nppo:\n  data: p.jsonl\n  environments: [{id: a/C-v0}, {id: a/B-v0}]\n",
        "line 3: ppo.data is read only by rlhf/Prompts-v0, not by a/C-v0, a/B-v0: remove it",
    ),
    "batch that does not fit the processes": (
        "model: {path: m}\nsft: {data: d.jsonl, batch_size: 9}\ndistributed: {processes: 2}\n",
        "line 2: sft.batch_size 9 must be a multiple of microbatch_size x processes = 8",
    ),
    # YAML
    "duplicate key": (
        "model: {path: m}\nseed: 1\nseed: 2\n",
        "line 3: seed: the key stands here again, after line 2: remove one",
    ),
    "number as a key": (
        "model: {path: m}\n7: seven\n",
        "line 2: key 7 is not text: quote it",
    ),
    "foreign tag": (
        "model: {path: !!python/name:os.system m}\n",
        "line 1: model.path: tag !!python/name:os.system is not read here: remove it",
    ),
    "anchor that holds itself": (
        "model: {path: m}\ntracking: &t\n  wandb: *t\n",
        "line 2: tracking.wandb: an anchor that holds itself: write the values out",
    ),
    "list for a config": (
        "- model\n- sft\n",
        "line 1: got a list of 2; a config is a section with keys such as `model:`",
    ),
}

SYNTAX = {
    "tab": ("model:\n\tpath: m\n", "line 2, column 1: not YAML: ", "(indent with spaces, not with tabs)"),
    "unclosed bracket": ("model: {path: m\n", "line 2, column 1: not YAML: ", "expected ',' or '}'"),
    "colon in a value": ("name: a: b\n", "line 1, column 8: not YAML: ", "a value that holds ': ' must be quoted"),
    "unknown anchor": ("model: *m\n", "line 1, column 8: not YAML: ", "undefined alias 'm'"),
    "two documents": ("seed: 1\n---\nseed: 2\n", "line 2, column 1: not YAML: ", "remove the '---' between"),
    "control character": ("seed: 1\nname: \x07\n", "line 2: character ", "is not allowed in YAML: remove it"),
}

OVERRIDES = {
    "misspelt key": ("ppo.kl.coeficient=1", "override: ppo.kl.coeficient: unknown key; did you mean coefficient?"),
    "misspelt section": ("pppo.kl=1", "override: pppo: unknown key; did you mean ppo?"),
    "wrong value": (
        "ppo.clip_range=-1",
        "override: ppo.clip_range: got -1; allowed: a number above 0; the default is 0.2",
    ),
    "no value": (
        "seed",
        "override: 'seed' is no override: write key.path=value, e.g. ppo.learning_rate=1e-5",
    ),
    "no key": ("=1", "override: '=1' is no override: write key.path=value, e.g. ppo.learning_rate=1e-5"),
    "not YAML": (
        "name=[a",
        "override: name: value '[a' cannot be read: line 1, column 3: not YAML: while parsing a flow sequence, "
        "expected ',' or ']', but got '<stream end>'. Quote it: name='\"...\"'",
    ),
    "duplicate key in a value": (
        "ppo.kl={target: 1, target: 2}",
        "override: ppo.kl: value '{target: 1, target: 2}' cannot be read: the key stands here again, after line 1: "
        "remove one. Quote it: ppo.kl='\"...\"'",
    ),
    "key of a value": ("seed.x=1", "override: seed: seed is 3, which has no keys of its own"),
    "index beyond the list": (
        "ppo.data.sources.2.path=x",
        "override: ppo.data.sources: '2' is no index: ppo.data.sources is a list of 1; allowed: 0 to 1, which appends",
    ),
    "name for an index": (
        "ppo.data.sources.first.path=x",
        "override: ppo.data.sources: 'first' is no index: ppo.data.sources is a list of 1; allowed: 0 to 1, which "
        "appends",
    ),
    "keys that do not go together": (
        "ppo.minibatches=7",
        "override: ppo: episodes_per_iteration 64 must be a multiple of minibatches 7",
    ),
}


@pytest.fixture
def message_of(tmp_path: Path):
    """What loading a text says."""

    def load(text: str, *overrides: str) -> str:
        path = tmp_path / "my.yaml"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError) as caught:
            load_config(path, overrides)
        return str(caught.value).replace(str(path), "my.yaml")

    return load


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_with_its_line_and_the_way_out(name: str, message_of):
    text, expected = MISTAKES[name]
    lines = message_of(text).splitlines()
    assert f"  {expected}" in lines[1:]


# A file whose root is no section also lacks its required sections.
@pytest.mark.parametrize("name", [name for name in MISTAKES if name != "list for a config"])
def test_a_single_mistake_gives_a_single_message(name: str, message_of):
    first, *rest = message_of(MISTAKES[name][0]).splitlines()
    assert first == "my.yaml has 1 mistake:"
    assert len(rest) == 1


@pytest.mark.parametrize("name", SYNTAX)
def test_what_is_no_yaml_is_named_with_its_place(name: str, message_of):
    text, place, hint = SYNTAX[name]
    message = message_of(text)
    assert message.startswith(f"my.yaml: {place}")
    assert hint in message


@pytest.mark.parametrize("name", OVERRIDES)
def test_a_mistake_of_an_override_is_named(name: str, message_of):
    override, expected = OVERRIDES[name]
    assert message_of("seed: 3\n" + PPO, override) == f"my.yaml has 1 mistake:\n  {expected}"


def test_all_mistakes_are_named_at_once_in_the_order_of_lines(message_of):
    text = """\
model: {path: m, dtype: float16}
sft:
  data: {path: d.jsonl, weigth: 2}
  batch_size: 6
  microbatch_size: 4
  epochs: 0
ppo:
  data: p.jsonl
  rewards: {reward_model: {}}
  advantage: gea
"""
    lines = [line.partition(";")[0] for line in message_of(text, "sede=1").splitlines()]
    assert lines == [
        "my.yaml has 7 mistakes:",
        "  line 1: model.dtype: got 'float16' (text)",
        "  line 3: sft.data.weigth: unknown key",
        "  line 4: sft: batch_size 6 must be a multiple of microbatch_size 4",
        "  line 6: sft.epochs: got 0",
        "  line 9: ppo.rewards.reward_model: this run has no reward stage: add `reward`, or give a path",
        "  line 10: ppo.advantage: got 'gea' (text)",
        "  override: sede: unknown key",
    ]


def test_checks_across_keys_are_silent_about_keys_that_are_wrong_themselves(message_of):
    # Left out, the wrong microbatch_size and the misspelt samples_per_prompt would make a second mistake.
    text = PPO + "  advantage: rloo\n  samples_per_promt: 4\nsft: {data: d.jsonl, batch_size: 8, microbatch_size: x}\n"
    lines = [line.partition(";")[0] for line in message_of(text).splitlines()[1:]]
    assert lines == ["  line 6: ppo.samples_per_promt: unknown key", "  line 7: sft.microbatch_size: got 'x' (text)"]


def test_a_file_that_is_not_there_names_its_neighbour(tmp_path: Path):
    (tmp_path / "quickstart.yaml").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"quikstart.yaml: no such config file; did you mean .*quickstart.yaml\?"):
        load_config(tmp_path / "quikstart.yaml")
    with pytest.raises(ConfigError, match=r"x.yaml: no such config file \(there is no folder .*nowhere\)"):
        load_config(tmp_path / "nowhere" / "x.yaml")


def test_a_folder_and_a_file_of_bytes_are_no_configs(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"is a folder, and a config is a file\. Name a YAML file"):
        load_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("name: caf\xe9\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"byte 10 is not UTF-8\. Save the file as UTF-8"):
        load_config(tmp_path / "latin.yaml")
