"""Where a response ends, where its score lands, and what it costs when pad and EOS are the same token."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from ppo_enumerable import PrefixPolicy
from ppo_helpers import advantaged, letters_tokenizer, prompts, tiny, weights
from trl_defects.stock import EOS, A, B, C, FixedReward, in_trl, left_padding, script, stock_trainer
from trl_helpers import make_trainer

WIDTH = 4
# What is said to each prompt: two responses that stop, and one that fills its length.
RESPONSES: dict[int, list[int]] = {A: [B, EOS], B: [A, C, EOS], C: [A, B, C, A]}
INNER_EOS = [A, EOS, B]


def pad_is_eos() -> Any:
    return left_padding(letters_tokenizer(pad="<e>"))


def score_one(prompts: Any, completions: Sequence[str], **_: Any) -> list[float]:
    return [1.0 for _ in completions]


def stock_run(folder: Any, monkeypatch: pytest.MonkeyPatch, responses: dict[int, list[int]], **options: Any) -> Any:
    """Train TRL's trainer for one iteration on these responses, all of which score 1, with no KL penalty."""
    script(monkeypatch, responses, WIDTH, fill=options.pop("fill", EOS))
    options = {"per_device_train_batch_size": len(responses), "stop_token": "eos", **options}
    trainer = stock_trainer(
        folder, rows=[[letter] for letter in responses], total_episodes=len(responses), response_length=WIDTH,
        kl_coef=0.0, **options,
    )  # fmt: skip
    trainer.train()
    return trainer


def by_prompt(trainer: Any, name: str) -> dict[int, list[Any]]:
    """One of the tensors (B, T) of the only iteration, by the prompt's token."""
    (kept,) = trainer.spy.iterations
    return dict(zip(kept["queries"][:, -1].tolist(), kept[name].tolist(), strict=True))


def run_here(folder: Any, responses: dict[int, list[int]], **options: Any) -> Any:
    """This project's trainer with a policy that says these responses; returns it, and the batch by prompt."""
    said = {(letter, *ids[:t]): ids[t] for letter, ids in responses.items() for t in range(len(ids))}
    table = {state: torch.where(torch.arange(8) == token, 0.0, -99.0).double() for state, token in said.items()}
    options = {"reward_model": score_one, "per_device_train_batch_size": len(responses), **options}
    trainer = make_trainer(
        folder, PrefixPolicy(list(said), 8).load(table), train_dataset=prompts([[letter] for letter in responses]),
        total_episodes=len(responses), response_length=WIDTH, kl_coef=0.0, num_ppo_epochs=1, **options,
    )  # fmt: skip
    episodes = trainer.ppo.rollout(0)
    batch = advantaged(trainer.ppo, episodes)
    return trainer, batch, {e.token_ids[0]: row for row, e in enumerate(episodes)}


@in_trl
def test_the_score_lands_one_past_eos_in_trl(tmp_path, monkeypatch):
    rewards = by_prompt(stock_run(tmp_path, monkeypatch, RESPONSES), "rewards")
    assert rewards[A] == [0, 0, 1, 0]  # EOS is at 1
    assert rewards[B] == [0, 0, 0, 1]  # EOS is at 2
    assert rewards[C] == [0, 0, 0, 1]  # only a response that fills its length is right


def test_the_score_lands_on_the_last_token_here(tmp_path):
    _, batch, rows = run_here(tmp_path, RESPONSES)
    assert batch.rewards[rows[A]].tolist() == [0, 1, 0, 0]
    assert batch.rewards[rows[B]].tolist() == [0, 0, 1, 0]
    assert batch.rewards[rows[C]].tolist() == [0, 0, 0, 1]


@in_trl
def test_eos_falls_out_of_the_policy_loss_where_pad_is_eos_in_trl(tmp_path, monkeypatch):
    distinct = by_prompt(stock_run(tmp_path, monkeypatch, RESPONSES), "padding_mask")
    same = by_prompt(stock_run(tmp_path, monkeypatch, RESPONSES, processing_class=pad_is_eos()), "padding_mask")
    assert distinct[A] == [False, False, True, True]
    assert same[A] == [False, True, True, True]  # True is left out of the loss: EOS, at 1, is never learnt
    assert same[B] == [False, False, True, True]


def test_eos_stays_in_the_policy_loss_where_pad_is_eos_here(tmp_path):
    _, batch, rows = run_here(tmp_path, RESPONSES, tokenizer=letters_tokenizer(pad="<e>"))
    assert batch.mask[rows[A]].tolist() == [True, True, False, False]
    assert batch.mask[rows[B]].tolist() == [True, True, True, False]
    assert [int(batch.input_ids[rows[A], at]) for at in batch.positions[rows[A], :2]] == [B, EOS]


def logprobs_of_first_tokens(policy: Any, first_tokens: Sequence[int]) -> list[float]:
    """Of the first response token behind `INNER_EOS`, by a plain forward pass over all of the prompt."""
    with torch.no_grad():
        row = policy(torch.tensor([INNER_EOS])).logits[0, -1].log_softmax(-1)
    return row[list(first_tokens)].tolist()


@in_trl
def test_an_eos_inside_a_prompt_is_masked_where_pad_is_eos_in_trl(tmp_path):
    policy = tiny()
    expected = logprobs_of_first_tokens(policy, range(8))
    trainer = stock_trainer(tmp_path, policy, rows=[INNER_EOS] * 8, processing_class=pad_is_eos(), response_length=2)
    trainer.train()
    (kept,) = trainer.spy.iterations
    pairs = zip(kept["responses"][:, 0].tolist(), kept["logprobs"][:, 0].tolist(), strict=True)
    wrong = [abs(expected[token] - logprob) for token, logprob in pairs if token != EOS]
    assert wrong
    assert min(wrong) > 0.01  # nats


def test_an_eos_inside_a_prompt_is_read_where_pad_is_eos_here(tmp_path):
    policy = tiny()
    trainer = make_trainer(
        tmp_path, policy, tokenizer=letters_tokenizer(pad="<e>"), reward_model=score_one,
        train_dataset=prompts([INNER_EOS] * 8), response_length=2,
    )  # fmt: skip
    episodes = trainer.ppo.rollout(0)
    expected = logprobs_of_first_tokens(policy, [e.token_ids[3] for e in episodes])
    assert [e.sampled_logprobs[3] for e in episodes] == pytest.approx(expected, abs=1e-5)
    assert advantaged(trainer.ppo, episodes).logprobs[:, 0].tolist() == pytest.approx(expected, abs=1e-5)


@in_trl
def test_an_empty_response_logs_nan_where_pad_is_eos_in_trl(tmp_path, monkeypatch):
    options = {"processing_class": pad_is_eos(), "per_device_train_batch_size": 1, "gradient_accumulation_steps": 3}
    trainer = stock_run(tmp_path, monkeypatch, {**RESPONSES, A: [EOS]}, **options)
    (logged,) = trainer.state.log_history
    assert math.isnan(logged["loss/policy_avg"])
    assert math.isnan(logged["policy/clipfrac_avg"])


@in_trl
def test_empty_responses_alone_end_the_run_where_pad_is_eos_in_trl(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="sum of the mask is zero"):
        stock_run(tmp_path, monkeypatch, {A: [EOS], B: [EOS]}, processing_class=pad_is_eos())


@pytest.mark.parametrize("responses", [{**RESPONSES, A: [EOS]}, {A: [EOS], B: [EOS]}])
def test_empty_responses_are_trained_on_where_pad_is_eos_here(tmp_path, responses):
    trainer, batch, rows = run_here(
        tmp_path, responses, tokenizer=letters_tokenizer(pad="<e>"), per_device_train_batch_size=1,
        gradient_accumulation_steps=len(responses),
    )  # fmt: skip
    assert batch.mask[rows[A]].sum() == 1
    assert batch.rewards[rows[A], 0] == 1
    means = trainer.ppo.update(batch, 0).means()
    assert all(math.isfinite(value) for value in means.values())
    assert (means["optimizer_steps"], means["skipped_steps"]) == (1, 0)
    assert all(weight.isfinite().all() for weight in weights(trainer.actor_critic).values())


STOPS_AT_B = {A: [C, B], C: [A, A, A, A]}


@in_trl
def test_missing_eos_penalty_punishes_ones_own_stop_token_in_trl(tmp_path, monkeypatch):
    options = {"stop_token": None, "stop_token_id": B, "missing_eos_penalty": 5.0}
    trainer = stock_run(tmp_path, monkeypatch, STOPS_AT_B, fill=C, **options)
    assert by_prompt(trainer, "scores") == {A: -4.0, C: -4.0}  # A's response ended as it should


def test_missing_eos_penalty_looks_for_the_stop_token_here(tmp_path):
    _, batch, rows = run_here(tmp_path, STOPS_AT_B, stop_token_id=B, missing_eos_penalty=5.0)
    assert batch.rewards[rows[A]].tolist() == [0, 1, 0, 0]
    assert batch.rewards[rows[C]].tolist() == [0, 0, 0, -4]


@in_trl
def test_text_behind_eos_is_scored_unless_stop_token_is_set_in_trl(tmp_path):
    reward = FixedReward()
    trainer = stock_trainer(tmp_path, reward_model=reward, response_length=16)
    trainer.train()
    assert trainer.args.stop_token is None
    assert any(EOS in ids[:-1] for ids in reward.seen)


def test_responses_end_at_eos_unless_told_otherwise_here(tmp_path):
    trainer = make_trainer(
        tmp_path, tiny(), reward_model=score_one, train_dataset=prompts([[A], [B], [C], [6]] * 2), response_length=16
    )
    episodes = trainer.ppo.rollout(0)
    assert trainer.args.stop_token is None
    assert any(e.token_ids[-1] == EOS for e in episodes)
    assert not any(EOS in e.token_ids[:-1] for e in episodes)
