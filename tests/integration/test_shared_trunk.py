"""One trunk for policy, reference, critic and reward model, through the command line: one process and several agree."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_pipeline import TINY, copy_run, rlhf
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf.config.load import load_config
from rlhf.files.run_folder import RunFolder
from rlhf.models.load import load_policy
from rlhf.ppo import load_critic
from rlhf.stages.ppo import make_policy
from rlhf.tracking.jsonl import read_series

pytestmark = pytest.mark.slow

CURVES = ("ppo/score", "ppo/kl", "ppo/loss/policy", "ppo/loss/value", "ppo/gradient_norm")
LORA = ("model.lora={rank: 4, alpha: 16}", "ppo.critic.type=adapter", "evaluate.max_prompts=4")
SHARED = "ppo.rewards.reward_model.share_trunk=true"
SPREAD_ALL = "distributed.deepspeed={zero_optimization: {stage3_param_persistence_threshold: 0}}"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    rlhf("run", str(TINY), f"runs_dir={runs}", "name=one", *LORA, SHARED)
    return runs / "one"


def again(run, name, *arguments):
    copied = copy_run(run, name, "ppo", "evaluate")
    rlhf("ppo", str(TINY), f"runs_dir={run.parent}", f"name={name}", *LORA, *arguments)
    return copied


def curves(run):
    return {name: [value for _, value in read_series(run)[name]] for name in CURVES}


def assert_alike(run, other):
    expected, found = curves(run), curves(other)
    for name in CURVES:
        assert found[name] == pytest.approx(expected[name], abs=1e-4), name
    AutoModelForCausalLM.from_pretrained(other / "ppo")
    critics = [load_file(folder / "ppo" / "critic" / "adapter_model.safetensors") for folder in (run, other)]
    assert all(torch.allclose(critics[1][name], weight, atol=1e-4) for name, weight in critics[0].items())
    assert any(weight.abs().max() > 0 for name, weight in critics[0].items() if ".lora_B." in name)


def test_a_run_leaves_plain_models_and_a_critic_that_loads(run):
    folder = RunFolder(run)
    config = load_config(TINY, [f"runs_dir={run.parent}", *LORA, SHARED]).config
    AutoModelForSequenceClassification.from_pretrained(folder.reward)
    assert not any("lora" in name or "critic" in name for name in load_file(folder.ppo / "model.safetensors"))
    tokenizer = AutoTokenizer.from_pretrained(folder.ppo)
    assert (load_policy(config.model, tokenizer, folder=folder.ppo).lm_head.weight != 0).any()
    critic = load_critic(folder.ppo / "critic", make_policy(config, folder, tokenizer))
    assert critic.score.weight.abs().max() > 0


def test_a_model_of_its_own_gives_the_same_scores(run):
    assert_alike(run, again(run, "models"))


@pytest.mark.parametrize("zero", [(), ("--zero", "2")], ids=["ddp", "zero2"])
def test_two_processes_share_trunks_alike(run, zero):
    assert_alike(run, again(run, "two" + "".join(zero), SHARED, "--processes", "2", *zero))


def test_an_adapter_critic_is_spread_by_zero_3(run):
    assert_alike(run, again(run, "zero3", SPREAD_ALL, "--processes", "2", "--zero", "3"))


def test_a_later_run_goes_on_with_the_critic(run):
    copied = again(run, "later", SHARED, f"ppo.critic.path={run / 'ppo' / 'critic'}", "ppo.iterations=1")
    fresh, trained = (read_series(folder)["ppo/explained_variance"][0][1] for folder in (run, copied))
    assert trained != fresh  # a new critic says 0, which explains nothing
    assert json.loads((copied / "manifest.json").read_text())["stages"]["ppo"]["inputs"]["content of ppo.critic.path"]
