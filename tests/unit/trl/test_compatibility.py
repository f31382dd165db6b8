"""Every public name of TRL 1.12's PPOTrainer works, or says that it does not and what to use."""

import json

import pytest
import torch
from ppo_helpers import prompts, tiny, with_lora
from transformers import Trainer
from trl_helpers import make_trainer

from rlhf.errors import DataError
from rlhf.trl import PPOTrainer, hub
from rlhf.trl.compatibility import INSTEAD

# `[name for name in dir(PPOTrainer) if name[0] != "_"]` of TRL 1.12.0 with transformers 5.23.0, read off once.
PUBLIC = """
    add_callback autocast_smart_context_manager call_model_init compute_loss compute_loss_context_manager
    create_accelerator_and_postprocess create_model_card create_optimizer create_optimizer_and_scheduler
    create_scheduler end evaluate evaluation_loop floating_point_ops generate_completions get_batch_samples get_cp_size
    get_decay_parameter_names get_eval_dataloader get_learning_rates get_num_trainable_parameters
    get_optimizer_cls_and_kwargs get_optimizer_group get_sp_size get_test_dataloader get_total_train_batch_size
    get_tp_size get_train_dataloader hyperparameter_search init_hf_repo is_local_process_zero is_world_process_zero log
    log_metrics loss_is_scaled_for_ga metrics_format null_ref_context num_examples pop_callback predict prediction_step
    push_to_hub remove_callback save_metrics save_model save_state set_initial_training_values store_flos train
    training_step
""".split()
# Public attributes that its constructor sets, and that scripts and callbacks read.
ATTRIBUTES = """
    accelerator args callback_handler control data_collator eval_dataset hub_model_id is_deepspeed_enabled
    is_fsdp_enabled lr_scheduler model optimizer policy_model processing_class ref_model reward_model state
    train_dataset value_model
""".split()
ROWS = [[3], [4, 5, 6], [5, 5], [6, 7]]


def trainer(folder, policy=None, **options):
    def reward(prompts, completions, **_):
        return [1.0 * len(text) for text in completions]

    defaults = {"response_length": 4, "total_episodes": 8, "num_ppo_epochs": 1, "learning_rate": 1e-2}
    given = {"reward_model": reward, "train_dataset": prompts(ROWS), "eval_dataset": prompts(ROWS[:2])}
    return make_trainer(folder, policy or tiny(), **{**given, **defaults, **options})


@pytest.mark.parametrize("name", PUBLIC)
def test_a_name_works_or_says_what_to_use(tmp_path_factory, name):
    made = trainer(tmp_path_factory.getbasetemp())
    if name not in INSTEAD:
        assert callable(getattr(made, name))
        assert hasattr(PPOTrainer, name)
        return
    assert not hasattr(made, name)
    with pytest.raises(AttributeError, match=rf"PPOTrainer\.{name} of TRL does not work here: \w+"):
        getattr(made, name)


def test_the_table_has_no_other_names():
    assert set(INSTEAD) <= set(PUBLIC)


def test_attributes_are_there(tmp_path):
    made = trainer(tmp_path)
    assert [name for name in ATTRIBUTES if not hasattr(made, name)] == []
    with pytest.raises(AttributeError, match="'PPOTrainer' object has no attribute 'trian'"):
        _ = made.trian


def test_small_methods_answer(tmp_path):
    made = trainer(tmp_path, learning_rate=0.5, critic_learning_rate=0.25)
    head = made.value_model.score
    assert set(made.get_learning_rates()) == {0.5, 0.25}
    assert made.get_num_trainable_parameters() == sum(p.numel() for p in tiny().parameters()) + 17
    assert made.get_optimizer_group(head.weight)["lr"] == 0.25
    assert sum(len(group) for group in made.get_optimizer_group()) == len(list(made.actor_critic.parameters()))
    assert "policy.model.norm.weight" not in made.get_decay_parameter_names(made.actor_critic)
    assert made.get_total_train_batch_size(made.args) == 8
    assert (made.get_tp_size(), made.get_cp_size(), made.get_sp_size()) == (1, 1, 1)
    assert made.is_world_process_zero()
    assert made.is_local_process_zero()
    assert made.metrics_format({"a": 1.23456789, "b": 2}) == {"a": 1.2346, "b": 2}
    kind, options = made.get_optimizer_cls_and_kwargs(made.args)
    assert (kind, options) == Trainer.get_optimizer_cls_and_kwargs(made.args)


def test_loaders_pad_the_prompts(tmp_path):
    made = trainer(tmp_path, tokenizer=None)
    made.processing_class.padding_side = "left"
    (batch,) = made.get_train_dataloader()
    assert batch["input_ids"].tolist() == [[0, 0, 3], [4, 5, 6], [0, 5, 5], [0, 6, 7]]
    assert made.num_examples(made.get_train_dataloader()) == 4
    (batch,) = made.get_eval_dataloader()
    assert batch["attention_mask"].tolist() == [[0, 0, 1], [1, 1, 1]]


def test_prompts_that_are_not_tokenised_are_named(tmp_path):
    made = trainer(tmp_path)
    made.eval_dataset = [{"input_ids": [3]}, {"prompt": "Hi"}]
    with pytest.raises(DataError, match=r"row 1 of the data set has no input_ids; it has prompt\. Tokenise"):
        made.get_eval_dataloader()


def test_without_its_adapters_the_policy_is_the_reference(tmp_path):
    policy, row = with_lora(tiny(), target_modules=["q_proj"]), torch.tensor([[3, 4]])
    before = policy(row).logits.detach()
    made = trainer(tmp_path, policy, learning_rate=0.5)
    made.train()
    with torch.no_grad():
        assert not torch.allclose(policy(row).logits, before)
        with made.null_ref_context():
            torch.testing.assert_close(policy(row).logits, before)


def test_logs_metrics_and_state_are_written(tmp_path, capsys):
    made = trainer(tmp_path)
    made.log({"mine": 3.0})
    epoch = {} if made.state.epoch is None else {"epoch": 0}  # None before transformers 5
    assert made.state.log_history == [{"mine": 3.0, **epoch, "step": 0}]
    made.log_metrics("train", {"mine": 3.0})
    assert "mine" in capsys.readouterr().out
    made.save_metrics("train", {"mine": 3.0})
    assert json.loads((tmp_path / "train_results.json").read_text()) == {"mine": 3.0}
    made.save_state()
    assert json.loads((tmp_path / "trainer_state.json").read_text())["global_step"] == 0


def test_the_model_card_names_where_the_model_comes_from(tmp_path):
    made = trainer(tmp_path)
    made.actor_critic.config._name_or_path = "someone/model"
    made.create_model_card("mine", dataset_name="someone/prompts", tags="german")
    text = (tmp_path / "README.md").read_text()
    assert "base_model: someone/model" in text
    assert "datasets: someone/prompts" in text
    assert "- german" in text
    assert "# mine" in text


def test_pushing_saves_and_uploads_without_checkpoints(tmp_path, monkeypatch):
    calls = {}

    class Url:
        repo_id = "someone/mine"

    monkeypatch.setattr(hub.huggingface_hub, "create_repo", lambda name, **more: calls.update(created=name) or Url)
    monkeypatch.setattr(hub.huggingface_hub, "upload_folder", lambda **more: calls.update(more) or "uploaded")
    made = trainer(tmp_path, hub_model_id="mine", hub_revision="tried")
    assert made.push_to_hub("done") == "uploaded"
    assert (calls["created"], calls["repo_id"], calls["revision"]) == ("mine", "someone/mine", "tried")
    assert (calls["commit_message"], calls["run_as_future"]) == ("done", False)
    assert "checkpoint-*/**" in calls["ignore_patterns"]
    assert (tmp_path / "model.safetensors").is_file()
    assert "# mine" in (tmp_path / "README.md").read_text()
