"""Options and roles of the trainer that change how a run goes: precision, adapters, estimators, logging, evaluation."""

import math

import pytest
import torch
from peft import LoraConfig
from ppo_helpers import FixedSource, make_trainer, prompts, random_episodes, tiny, weights, with_lora
from rlhf.trl.bridge import TrlPPOConfig, TrlPPOTrainer
from transformers import TrainerCallback

from rlhf.ppo.kl import AdaptiveKLController, FixedKLController
from rlhf.ppo.trainer import PPOTrainer
from rlhf.trl.config import PPOConfig

ROWS = [[3], [4, 5, 6], [5, 5], [6, 7, 3, 3], [7], [3, 4], [4, 4, 4, 4, 4], [6]]


def count(prompts, completions, completion_ids, **_):
    return [float(len(set(ids))) for ids in completion_ids]


def trainer(folder, policy=None, **options):
    defaults = {"response_length": 6, "learning_rate": 1e-2, "total_episodes": 16, "num_ppo_epochs": 1}
    given = {"reward_model": count, "train_dataset": prompts(ROWS), **defaults, **options}
    return make_trainer(folder, policy if policy is not None else tiny(), **given)


def test_it_is_a_trl_trainer_with_trl_options(tmp_path):
    made = trainer(tmp_path)
    assert isinstance(made, TrlPPOTrainer)
    assert isinstance(made.args, TrlPPOConfig)
    assert issubclass(PPOTrainer, TrlPPOTrainer)


@pytest.mark.parametrize("lora", [False, True])
def test_bf16_computes_low_and_keeps_masters_and_the_ratio(tmp_path, lora):
    policy = with_lora(tiny(), target_modules="all-linear") if lora else tiny()
    made = trainer(tmp_path, policy, bf16=True)
    batch = made.score(made.rollout(0))
    assert batch.logprobs.dtype == torch.float32
    gap = (batch.logprobs - batch.sampled_logprobs)[batch.mask].abs().max()
    assert 1e-6 < gap < 0.3
    exact = trainer(tmp_path, tiny())
    difference = (batch.ref_logprobs - exact.score(exact.rollout(0)).ref_logprobs).abs().max()
    assert difference > 1e-6  # it was bfloat16 indeed
    means = made.update(batch, 0).means()
    assert (means["ratio"], means["approx_kl"]) == (1.0, 0.0)
    assert all(p.dtype == torch.float32 for p in made.actor_critic.parameters() if p.requires_grad)


def test_a_config_trains_adapters_alone(tmp_path):
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    made = trainer(tmp_path, tiny(), peft_config=config, save_strategy="steps", save_steps=2)
    before = weights(made.actor_critic)
    made.train()
    moved = {name for name, weight in weights(made.actor_critic).items() if not torch.equal(weight, before[name])}
    assert moved
    assert all("lora_" in name or name.startswith("value_model.") for name in moved)
    assert (tmp_path / "checkpoint-2" / "adapter_config.json").is_file()
    assert not (tmp_path / "checkpoint-2" / "model.safetensors").is_file()
    resumed = trainer(tmp_path, tiny(), peft_config=config, total_episodes=24)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.state.global_step == 3


@pytest.mark.parametrize("advantage", ["rloo", "group", "reinforce"])
def test_estimators_without_a_critic_train_none(tmp_path, advantage):
    seen = []
    made = trainer(tmp_path, advantage=advantage, samples_per_prompt=4, on_iteration=seen.append, vf_coef=1e9)
    assert made.value_model is None
    before = weights(made.actor_critic)
    made.train()
    assert [len({e.index for e in i.episodes}) for i in seen] == [2, 2]
    assert all(i.metrics["ppo/loss/value"] == 0 for i in seen)
    assert any(not torch.equal(weight, before[name]) for name, weight in weights(made.actor_critic).items())


def test_the_critics_own_learning_rate_and_weight_decay(tmp_path):
    made = trainer(tmp_path, learning_rate=1e-3, critic_learning_rate=0.5, weight_decay=0.1)
    critic = {id(parameter) for parameter in made.value_model.parameters()}
    counted = 0
    for group in made.optimizer.param_groups:
        for parameter in group["params"]:
            assert group["lr"] == (0.5 if id(parameter) in critic else 1e-3)
            assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)
            counted += 1
    assert counted == len(list(made.actor_critic.parameters()))
    assert made.optimizer.param_groups[0]["eps"] == 1e-5


def test_kl_controllers_by_name(tmp_path):
    options = {"kl_coef": 0.3, "kl_target": 2.0, "kl_horizon": 77}
    assert trainer(tmp_path, **options).kl_controller == FixedKLController(0.3)
    assert trainer(tmp_path, kl_controller="adaptive", **options).kl_controller == AdaptiveKLController(0.3, 2.0, 77)


def test_callbacks_see_steps_and_logs_and_may_stop(tmp_path):
    class Stop(TrainerCallback):
        steps = 0

        def on_step_end(self, args, state, control, **_):
            self.steps += 1
            control.should_training_stop = self.steps == 3
            return control

    stop = Stop()
    made = trainer(tmp_path, total_episodes=80, logging_steps=1, callbacks=[stop])
    made.train()
    assert (stop.steps, made.state.global_step) == (3, 3)
    assert [entry["step"] for entry in made.state.log_history] == [1, 2, 3]
    assert all("ppo/score" in entry and "ppo/kl" in entry for entry in made.state.log_history)


def test_an_iteration_that_nobody_scores_changes_nothing(tmp_path):
    episodes = random_episodes(4)
    made = make_trainer(tmp_path, tiny(), episodes=episodes, total_episodes=12, learning_rate=1e-2, num_ppo_epochs=1)
    before, scores, seen = weights(made.actor_critic), [e.score for e in episodes], []

    def on_iteration(iteration):
        seen.append((iteration.metrics["ppo/unscored_episodes"], iteration.batch is None, weights(made.actor_critic)))
        for episode, score in zip(episodes, scores, strict=True):
            episode.score = math.nan if len(seen) == 1 else score

    made.on_iteration = on_iteration
    made.train()
    assert [(unscored, empty) for unscored, empty, _ in seen] == [(0, False), (4, True), (0, False)]
    first, second, third = (now for _, _, now in seen)
    assert not torch.equal(before["policy.lm_head.weight"], first["policy.lm_head.weight"])
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(second["policy.lm_head.weight"], third["policy.lm_head.weight"])


def test_the_first_iteration_may_go_unscored_too(tmp_path):
    episodes = random_episodes(4)
    for episode in episodes:
        episode.score = math.nan
    made = make_trainer(tmp_path, tiny(), episodes=episodes, total_episodes=8)
    made.train()
    assert made.state.global_step == 2


def test_responses_to_an_evaluation_set_are_printed(tmp_path, capsys):
    made = trainer(tmp_path, eval_dataset=prompts([[3, 4], [5]]), num_sample_generations=1)
    made.train()
    printed = capsys.readouterr().out
    assert "prompt" in printed
    assert "a b" in printed


def test_responses_are_printed_where_episodes_come_from_a_source(tmp_path, capsys):
    source = FixedSource(random_episodes(8))
    made = make_trainer(
        tmp_path, tiny(), source=source, eval_dataset=prompts([[3, 4], [5]]), num_sample_generations=1,
        total_episodes=8, response_length=4,
    )  # fmt: skip
    made.train()
    assert "a b" in capsys.readouterr().out


def test_batch_arithmetic_has_trls_names(tmp_path):
    made = trainer(
        tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=3, num_mini_batches=6, total_episodes=30
    )
    args = made.args
    assert (args.batch_size, args.local_batch_size, args.mini_batch_size) == (12, 12, 2)
    assert args.num_total_batches == 3
    assert trainer(tmp_path, total_episodes=None, num_train_epochs=3).args.total_episodes == 24


def test_an_endless_source_needs_a_number_of_episodes(tmp_path):
    class Endless(FixedSource):
        num_prompts = None

    with pytest.raises(ValueError, match="total_episodes is not set"):
        make_trainer(tmp_path, tiny(), source=Endless(random_episodes(2)))


def test_options_default_to_what_the_papers_use():
    fields = PPOConfig.__dataclass_fields__
    assert {name: fields[name].default for name in ("gamma", "lam", "cliprange", "cliprange_value", "vf_coef")} == {
        "gamma": 1.0, "lam": 0.95, "cliprange": 0.2, "cliprange_value": 0.2, "vf_coef": 0.1,
    }  # fmt: skip
