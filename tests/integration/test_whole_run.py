"""The tiny configuration from end to end, through the command line: what a run leaves, skips and repeats."""

import json

import pyarrow.parquet as pq
import pytest
from tiny_pipeline import TINY, copy_run, rlhf
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf.tracking.jsonl import read_series

pytestmark = pytest.mark.slow

PPO_CURVES = ("ppo/score", "ppo/kl", "ppo/loss/policy", "ppo/loss/value", "ppo/gradient_norm")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    rlhf("run", str(TINY), f"runs_dir={runs}", "name=one")
    return runs / "one"


def again(run, name, *arguments):
    return rlhf("run", str(TINY), f"runs_dir={run.parent}", f"name={name}", *arguments)


def test_a_run_leaves_what_the_readme_says(run):
    AutoModelForCausalLM.from_pretrained(run / "sft")
    AutoModelForCausalLM.from_pretrained(run / "ppo")
    assert AutoModelForSequenceClassification.from_pretrained(run / "reward").config.num_labels == 1
    AutoModelForSequenceClassification.from_pretrained(run / "ppo" / "critic")
    tokenizer = AutoTokenizer.from_pretrained(run / "ppo")
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert (run / "config.yaml").read_text().count("# tiny.yaml:") > 20
    assert {*json.loads((run / "manifest.json").read_text())["stages"]} == {"sft", "reward", "ppo", "evaluate"}
    assert list((run / "wandb").glob("offline-run-*"))
    assert list((run / "tensorboard").rglob("events.*"))
    report = (run / "report.html").read_text("utf-8")
    assert "<svg" in report
    assert "http://" not in report.replace("http://www.w3.org", "")
    assert "<script src" not in report


def test_every_episode_is_on_disk_with_its_tokens(run):
    files = sorted((run / "rollouts").glob("*.parquet"))
    assert len(files) == 3
    assert [file.stem[-6:] for file in files] == ["000001", "000002", "000003"]
    tokenizer = AutoTokenizer.from_pretrained(run / "ppo")
    for row in pq.ParquetFile(files[0]).read().to_pylist():
        tokens = row["tokens"]
        assert row["length"] == len(tokens) == sum(row["response_mask"])
        assert row["component/length"] is not None
        assert row["kl"] == pytest.approx(sum(t["logprob"] - t["ref_logprob"] for t in tokens), abs=1e-4)
        assert row["reward"] == pytest.approx(row["score"] + row["reward_penalty"] + row["reward_kl"], abs=1e-4)
        own = [token for token, mask in zip(row["token_ids"], row["response_mask"], strict=True) if mask]
        assert "".join(token["text"] for token in tokens) == tokenizer.decode(own)
        assert [message["role"] for message in row["messages"]][-1] == "assistant"


def test_a_second_run_skips_everything(run):
    printed = again(run, "one")
    assert printed.count("skipped") == 4


def test_a_changed_key_repeats_exactly_what_depends_on_it(run):
    copied = copy_run(run, "changed")
    printed = again(run, "changed", "ppo.kl.coefficient=0.2")
    assert printed.count("skipped") == 2
    assert "ppo.kl.coefficient changed" in printed
    assert read_series(copied)["ppo/kl_coefficient"][0][1] == 0.2


def test_same_seed_same_numbers(run):
    copied = copy_run(run, "repeated", "ppo", "evaluate")
    again(run, "repeated")
    expected, found = read_series(run), read_series(copied)
    for name in PPO_CURVES:
        assert found[name] == expected[name], name


@pytest.mark.parametrize("arguments", [(), ("--zero", "2"), ("--zero", "3")], ids=["ddp", "zero2", "zero3"])
def test_ppo_in_two_processes_gives_the_numbers_of_one(run, arguments):
    name = "two" + "".join(arguments).replace("--", "")
    copied = copy_run(run, name, "ppo", "evaluate")
    again(run, name, "--processes", "2", *arguments)
    expected, found = read_series(run), read_series(copied)
    for curve in PPO_CURVES:
        assert [v for _, v in found[curve]] == pytest.approx([v for _, v in expected[curve]], abs=1e-4), curve
    AutoModelForCausalLM.from_pretrained(copied / "ppo")
