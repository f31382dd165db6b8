"""The texts that a tokenizer from scratch is trained on: all stages' training rows, nothing held out."""

import pytest
from stage_helpers import make_config, write

from rlhf.data.split import split_of
from rlhf.stages.corpus import texts


@pytest.fixture
def data(tmp_path):
    held_out = next(f"held out {i}" for i in range(100) if split_of(f"held out {i}", 0.2, 0.0) == "validation")
    asked = next(f"ask {i}" for i in range(100) if split_of(f"ask {i}", 0.2, 0.0) == "train")
    write(
        tmp_path / "demonstrations.jsonl",
        [{"prompt": asked, "completion": "answer"}, {"prompt": held_out, "completion": "secret"}],
    )
    chat = [{"role": "system", "content": "be kind"}, {"role": "user", "content": asked}]
    write(tmp_path / "preferences.jsonl", [{"prompt": chat, "chosen": "yes", "rejected": "no"}])
    write(tmp_path / "prompts.jsonl", [{"prompt": "go on"}])
    return tmp_path, asked


def test_training_rows_of_all_stages_are_read_and_held_out_ones_are_not(data):
    folder, asked = data
    every = {"path": str(folder / "preferences.jsonl"), "validation_fraction": 0.0}
    prompts = {"path": str(folder / "prompts.jsonl"), "validation_fraction": 0.0}
    ppo = {"data": prompts, "rewards": {"length": {"function": "length"}}}
    config = make_config(folder, sft={}, reward={"data": every}, ppo=ppo)
    assert list(texts(config)) == [asked, "answer", "be kind", asked, "yes", "no", "go on"]


def test_turns_of_pairs_that_part_early_are_read(data):
    folder, _ = data
    asked, again = {"role": "user", "content": "ask"}, {"role": "user", "content": "again"}
    said = [{"role": "assistant", "content": text} for text in ("one", "two", "three")]
    write(folder / "pairs.jsonl", [{"chosen": [asked, said[0], again, said[1]], "rejected": [asked, said[2]]}])
    pairs = {"path": str(folder / "pairs.jsonl"), "validation_fraction": 0.0}
    assert list(texts(make_config(folder, reward={"data": pairs}))) == ["ask", "one", "again", "two", "three"]


def test_a_stage_that_is_not_there_adds_nothing(data):
    folder, asked = data
    assert list(texts(make_config(folder, sft={}))) == [asked, "answer"]
