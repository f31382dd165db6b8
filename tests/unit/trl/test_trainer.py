"""The drop-in's trainer: roles and precision, callbacks and logs, checkpoints, and what is printed."""

import math

import pytest
import torch
from peft import LoraConfig
from ppo_helpers import FixedSource, advantaged, letters_tokenizer, prompts, random_episodes, tiny, weights, with_lora
from transformers import DataCollatorWithPadding, TrainerCallback
from trl_helpers import make_trainer

from rlhf.errors import DataError, ModelError, StageError
from rlhf.ppo.kl import AdaptiveKLController, FixedKLController
from rlhf.ppo.trainer import PPO
from rlhf.trl.checkpoints import checkpoints

ROWS = [[3], [4, 5, 6], [5, 5], [6, 7, 3, 3], [7], [3, 4], [4, 4, 4, 4, 4], [6]]


def count(prompts, completions, completion_ids, **_):
    return [float(len(set(ids))) for ids in completion_ids]


def trainer(folder, policy=None, **options):
    defaults = {"response_length": 6, "learning_rate": 1e-2, "total_episodes": 16, "num_ppo_epochs": 1}
    given = {"reward_model": count, "train_dataset": prompts(ROWS), **defaults, **options}
    return make_trainer(folder, policy if policy is not None else tiny(), **given)


def test_it_is_a_plain_class_around_the_loop(tmp_path):
    made = trainer(tmp_path)
    assert type(made).__mro__[1:] == (object,)
    assert isinstance(made.ppo, PPO)
    assert (made.model, made.optimizer, made.lr_scheduler) == (made.ppo.model, made.ppo.optimizer, made.ppo.schedule)
    assert made.policy_model is made.actor_critic.policy
    assert made.ref_model is not None


@pytest.mark.parametrize("lora", [False, True])
def test_bf16_computes_low_and_keeps_masters_and_the_ratio(tmp_path, lora):
    policy = with_lora(tiny(), target_modules="all-linear") if lora else tiny()
    made = trainer(tmp_path, policy, bf16=True)
    batch = advantaged(made.ppo)
    assert batch.logprobs.dtype == torch.float32
    gap = (batch.logprobs - batch.sampled_logprobs)[batch.mask].abs().max()
    assert 1e-6 < gap < 0.3
    difference = (batch.ref_logprobs - advantaged(trainer(tmp_path, tiny()).ppo).ref_logprobs).abs().max()
    assert difference > 1e-6  # it was bfloat16 indeed
    means = made.ppo.update(batch, 0).means()
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


def test_roles_that_do_not_go_together_are_refused(tmp_path):
    config, policy = LoraConfig(r=2, task_type="CAUSAL_LM"), tiny()
    with pytest.raises(ModelError, match="adapters already: merge them first, or leave peft_config out"):
        trainer(tmp_path, with_lora(tiny()), peft_config=config)
    with pytest.raises(ModelError, match="model and ref_model are the same object"):
        trainer(tmp_path, policy, ref_model=policy)
    with pytest.raises(ModelError, match="needs a critic: give value_model, or set critic to shared"):
        trainer(tmp_path, critic="separate")
    with pytest.raises(ValueError, match="train_dataset and reward_model are required"):
        trainer(tmp_path, reward_model=None)
    with pytest.raises(ValueError, match="eval_dataset is a dict of a, b"):
        trainer(tmp_path, eval_dataset={"a": None, "b": None})
    with pytest.raises(DataError, match=r"row 0 .*has no input_ids.*it has prompt"):
        trainer(tmp_path, train_dataset=[{"prompt": "a"}])


def test_a_collator_that_would_do_something_draws_a_warning(tmp_path):
    trainer(tmp_path, data_collator=DataCollatorWithPadding(letters_tokenizer()))
    with pytest.warns(UserWarning, match="data_collator has no effect"):
        trainer(tmp_path, data_collator=list)


@pytest.mark.parametrize("advantage", ["rloo", "group", "reinforce"])
def test_estimators_without_a_critic_train_none(tmp_path, advantage):
    seen = []
    made = trainer(tmp_path, advantage=advantage, samples_per_prompt=4, on_iteration=seen.append, vf_coef=1e9)
    assert made.value_model is None
    made.train()
    assert [len({e.index for e in i.episodes}) for i in seen] == [2, 2]
    assert all(i.metrics["ppo/loss/value"] == 0 for i in seen)


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


def test_optimizer_and_schedule_by_transformers_names(tmp_path):
    options = {"lr_scheduler_type": "cosine", "warmup_steps": 1, "optim": "sgd", "total_episodes": 40}
    made, rates = trainer(tmp_path, **options), []
    assert type(made.optimizer.optimizer) is torch.optim.SGD
    made.on_iteration = lambda iteration: rates.append(iteration.metrics["ppo/learning_rate"])
    made.train()
    # Warm-up over 1 of 5 iterations, then half a cosine over the 4 that are left.
    expected = [0.0, *(0.5 * (1 + math.cos(math.pi * step / 4)) for step in range(4))]
    assert rates == pytest.approx([1e-2 * factor for factor in expected], abs=1e-12)


def test_an_optimizer_and_a_schedule_may_be_given(tmp_path):
    policy = tiny()
    given = torch.optim.SGD(policy.parameters(), lr=0.5)
    schedule = torch.optim.lr_scheduler.ConstantLR(given, factor=0.5, total_iters=1)
    with pytest.warns(UserWarning, match=r"does not train 2 weights, e\.g\. value_model\.score\.weight"):
        made = trainer(tmp_path, policy, optimizers=(given, schedule))
    assert made.optimizer.optimizer is given
    assert made.lr_scheduler is schedule
    made.train()
    assert made.get_learning_rates() == [0.5]


def test_kl_controllers_by_name(tmp_path):
    options = {"kl_coef": 0.3, "kl_target": 2.0, "kl_horizon": 77}
    assert trainer(tmp_path, **options).ppo.kl_controller == FixedKLController(0.3)
    made = trainer(tmp_path, kl_controller="adaptive", **options)
    assert made.ppo.kl_controller == AdaptiveKLController(0.3, 2.0, 77)


@pytest.mark.parametrize("critic", ["shared", "adapter"])
def test_recomputed_activations_change_no_weight(tmp_path, critic):
    ends, passes = [], []
    for recomputed in (False, True):
        torch.manual_seed(0)
        policy = with_lora(tiny(), target_modules=["q_proj", "v_proj"])
        made = trainer(tmp_path, policy, critic=critic, gradient_checkpointing=recomputed, total_episodes=8)
        passes.append(calls_with_gradients(policy.get_base_model().model.layers[0].mlp))
        made.train()
        ends.append(weights(made.actor_critic))
    assert all(torch.allclose(weight, ends[1][name], atol=1e-6) for name, weight in ends[0].items())
    assert len(passes[1]) == 2 * len(passes[0]) > 0


def calls_with_gradients(module):
    calls = []
    module.register_forward_pre_hook(lambda *_: calls.append(1) if torch.is_grad_enabled() else None)
    return calls


class Events(TrainerCallback):
    """Writes down what it is told; asks to stop behind a step."""

    def __init__(self, last_step=None):
        self.seen, self.last_step = [], last_step

    def __getattribute__(self, name):
        if not name.startswith("on_") or name == "on_init_end":
            return super().__getattribute__(name)

        def event(args, state, control, **_):
            self.seen.append((name, state.global_step))
            if name == "on_step_end" and state.global_step == self.last_step:
                control.should_training_stop = True
            return control

        return event


def test_callbacks_are_told_and_may_stop(tmp_path):
    events = Events(last_step=2)
    made = trainer(
        tmp_path, total_episodes=80, logging_steps=1, save_strategy="steps", save_steps=2, callbacks=[events]
    )
    made.train()
    one = [("on_epoch_begin", 0), ("on_step_begin", 0), ("on_step_end", 1), ("on_epoch_end", 1), ("on_log", 1)]
    two = [("on_epoch_begin", 1), ("on_step_begin", 1), ("on_step_end", 2), ("on_epoch_end", 2), ("on_log", 2)]
    assert events.seen == [("on_train_begin", 0), *one, *two, ("on_save", 2), ("on_train_end", 2)]
    assert [entry["step"] for entry in made.state.log_history] == [1, 2]
    assert all("ppo/score" in entry and "ppo/kl" in entry for entry in made.state.log_history)
    assert (made.state.episode, made.state.max_steps, made.state.epoch) == (16, 10, 2.0)


def test_callbacks_come_and_go(tmp_path):
    made, events = trainer(tmp_path), Events()
    made.add_callback(events)
    assert made.pop_callback(Events) is events
    made.add_callback(events)
    made.remove_callback(events)
    made.train()
    assert not events.seen


def test_logs_and_checkpoints_once_an_epoch(tmp_path):
    options = {"logging_strategy": "epoch", "save_strategy": "epoch", "total_episodes": 32}
    made = trainer(tmp_path, per_device_train_batch_size=4, **options)  # 8 iterations, 2 in each pass over the prompts
    made.train()
    assert [entry["step"] for entry in made.state.log_history] == [2, 4, 6, 8]
    assert [path.name for path in checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in (2, 4, 6, 8)]


def test_a_resumed_run_ends_with_the_same_weights_and_logs(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1, "logging_steps": 1, "kl_controller": "adaptive"}
    whole = trainer(tmp_path / "whole", total_episodes=24, **saving)
    whole.train()
    resumed = trainer(tmp_path / "whole", total_episodes=24, **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    assert all(torch.equal(w, weights(resumed.actor_critic)[name]) for name, w in weights(whole.actor_critic).items())
    scores = [[entry["ppo/score"] for entry in each.state.log_history] for each in (whole, resumed)]
    assert scores[0] == scores[1]
    assert len(scores[0]) == 3
    assert resumed.ppo.kl_controller.coefficient == whole.ppo.kl_controller.coefficient != 0.05


def test_true_resumes_from_the_newest_checkpoint(tmp_path):
    with pytest.raises(StageError, match="has no checkpoint"):
        trainer(tmp_path).train(resume_from_checkpoint=True)
    trainer(tmp_path, save_strategy="steps", save_steps=1).train()
    (tmp_path / "checkpoint-old").mkdir()
    seen = []
    trainer(tmp_path, total_episodes=24, on_iteration=seen.append).train(resume_from_checkpoint=True)
    assert [iteration.number for iteration in seen] == [2]


def test_only_so_many_checkpoints_are_kept(tmp_path):
    trainer(tmp_path, total_episodes=40, save_strategy="steps", save_steps=1, save_total_limit=2).train()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-5"]


def test_the_new_checkpoint_stays_where_an_earlier_run_went_further(tmp_path):
    for episodes in (24, 8):
        trainer(tmp_path, total_episodes=episodes, save_strategy="steps", save_steps=1, save_total_limit=1).train()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-1"]


def test_a_checkpoint_has_what_transformers_has(tmp_path):
    made = trainer(tmp_path, save_strategy="steps", save_steps=2)
    made.train()
    names = {path.name for path in (tmp_path / "checkpoint-2").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "trainer_state.json", "training_args.bin"} < names
    assert torch.load(tmp_path / "checkpoint-2" / "training_args.bin", weights_only=False).response_length == 6
    assert (tmp_path / "README.md").is_file()


def test_models_alone_are_saved_if_asked_for(tmp_path):
    trainer(tmp_path, save_strategy="steps", save_steps=2, save_only_model=True).train()
    assert (tmp_path / "checkpoint-2" / "model.safetensors").is_file()
    assert not (tmp_path / "checkpoint-2" / "state").exists()
    with pytest.raises(StageError, match="no finished checkpoint"):
        trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_an_iteration_that_nobody_scores_changes_nothing(tmp_path):
    episodes = random_episodes(4)
    scores, seen = [e.score for e in episodes], []

    def on_iteration(iteration):
        seen.append((iteration.metrics["ppo/unscored_episodes"], iteration.batch is None, weights(made.actor_critic)))
        for episode, score in zip(episodes, scores, strict=True):
            episode.score = math.nan if len(seen) == 1 else score

    made = make_trainer(
        tmp_path, tiny(), episodes=episodes, total_episodes=12, learning_rate=1e-2, num_ppo_epochs=1,
        on_iteration=on_iteration,
    )  # fmt: skip
    made.train()
    assert [(unscored, empty) for unscored, empty, _ in seen] == [(0, False), (4, True), (0, False)]
    first, second, third = (now for _, _, now in seen)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(second["policy.lm_head.weight"], third["policy.lm_head.weight"])


@pytest.mark.parametrize("from_source", [False, True])
def test_responses_to_an_evaluation_set_are_printed(tmp_path, capsys, from_source):
    given = {"source": FixedSource(random_episodes(8))} if from_source else {}
    made = trainer(tmp_path, eval_dataset=prompts([[3, 4], [5]]), num_sample_generations=1, **given)
    made.train()
    printed = capsys.readouterr().out
    assert "prompt" in printed
    assert "a b" in printed


def test_batch_arithmetic_has_trls_names(tmp_path):
    made = trainer(
        tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=3, num_mini_batches=6, total_episodes=30
    )
    args = made.args
    assert (args.batch_size, args.local_batch_size, args.mini_batch_size) == (12, 12, 2)
    assert args.num_total_batches == 3
    assert trainer(tmp_path, total_episodes=None, num_train_epochs=3).args.total_episodes == 24
