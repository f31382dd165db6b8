"""The comparison of what trainers learn: its tasks, its statistics, and that both trainers do as much."""

import dataclasses
import importlib.metadata

import pytest
import torch
from datasets import concatenate_datasets

from benchmarks import learning
from benchmarks.learning import STOCK, compare, interval, learn, verdict
from benchmarks.tasks import ARMS, KEYWORDS, TASKS, trailing_mean
from benchmarks.trainers import MODES, train
from rlhf.trl.token_dataset import score_tokens


def needs_stock(test):
    """TRL's own trainer is in no TRL after 1.12, and may not take the place of the installed one in this process."""
    found = importlib.metadata.version("trl").startswith("1.12.")
    skip = pytest.mark.skipif(not found, reason="TRL has no PPOTrainer after 1.12: `make trl-defects` runs this")
    return pytest.mark.trl(skip(test))


def test_the_interval_is_students():
    middle, half = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert middle == 3.0
    assert half == pytest.approx(2.776 * 2.5**0.5 / 5**0.5, abs=1e-12)


@pytest.mark.parametrize(
    ("middle", "half", "said"),
    [
        (-0.5, 0.4, "worse"),
        (-0.5, 0.6, "undecided"),  # reaches 0, but also -1.1
        (-0.5, 0.5, "not worse"),
        (0.5, 0.1, "not worse"),
        (0.5, 1.6, "undecided"),
        (-0.09, 0.01, "not worse"),  # less than 1% of 10
        (-0.11, 0.01, "worse"),
    ],
)
def test_the_verdict_follows_the_rule(middle, half, said):
    assert verdict(middle, half, gain=10.0) == said


def test_differences_are_taken_seed_by_seed(monkeypatch):
    monkeypatch.setattr(learning, "OURS", ("fp32", "bf16", "best"))

    def curve(first, last):
        return {name: [first] * 5 + [last] * 20 for name in ("reward", "score", "kl")}

    curves = {("bandit", mode, seed): curve(0.0, 1.0 + seed) for mode in (STOCK, *learning.OURS) for seed in range(3)}
    curves |= {("bandit", "bf16", seed): curve(0.0, 0.5 + seed) for seed in range(3)}
    result = compare("bandit", curves, range(3))
    assert result["learnt_by_trl"] == 2.0
    assert result["modes"]["fp32"]["interval"] == [0.0, 0.0]  # though seeds differ by 1
    assert result["modes"]["fp32"]["verdict"] == "not worse"
    assert result["modes"]["bf16"]["difference"] == -0.5
    assert result["modes"]["bf16"]["verdict"] == "worse"
    assert result["modes"]["bf16"]["curves"]["reward"][-1] == 1.5


def test_the_rule_is_printed_whole():
    assert learning.rule().startswith("d is our reward minus TRL's")
    assert learning.rule().endswith('"undecided" if by more.')


def test_a_trailing_mean_is_that_of_a_loop():
    flags = torch.rand(3, 9) < 0.5
    means = trailing_mean(flags, 4)
    for row in range(3):
        for at in range(9):
            assert means[row, at].item() == pytest.approx(sum(flags[row, max(0, at - 3) : at + 1].tolist()) / 4)


def test_the_bandit_starts_at_its_reference_and_says_arms_alone():
    roles = TASKS["bandit"].roles(3)
    with torch.no_grad():
        drawn = roles.policy(torch.tensor([[0]])).logits[0, -1].softmax(-1)
    torch.testing.assert_close(drawn, ARMS, atol=1e-5, rtol=0)
    assert min(roles.tokenizer.pad_token_id, roles.tokenizer.eos_token_id) >= roles.policy.config.vocab_size


@needs_stock
@pytest.mark.filterwarnings("ignore:.*trl.experimental")
def test_both_trainers_read_the_same_score():
    """Keywords of the response count, those of the prompt do not; TRL's trainer pads on the left, ours on the right."""
    from trl.experimental.utils import get_reward

    roles, length = TASKS["keywords"].roles(0), TASKS["keywords"].options["response_length"]
    other, pad = KEYWORDS, roles.tokenizer.pad_token_id
    rows = [[0, 0, *[1] * 7, *[other] * (length - 7)], [other] * (length + 4)]
    by_hand = [(count - length / 4) / (length * 3 / 16) ** 0.5 for count in (7, 0)]
    assert score_tokens(roles.reward, rows) == pytest.approx(by_hand, abs=1e-5)
    padded = torch.tensor([[pad, pad, *rows[0]], rows[1]])
    with torch.no_grad():
        _, scores, _ = get_reward(roles.reward, padded, pad, 4)
    assert scores.tolist() == pytest.approx(by_hand, abs=1e-5)


def test_a_training_says_what_it_got():
    check_curves("fp32")


@needs_stock
def test_a_training_of_trls_says_what_it_got():
    check_curves(STOCK)


def check_curves(mode):
    curves = learn("bandit", mode, seed=0, iterations=2)
    assert {name: len(values) for name, values in curves.items()} == {"reward": 2, "score": 2, "kl": 2}
    assert curves["kl"][0] == 0
    assert abs(curves["kl"][1]) > 1e-4  # the update moved the policy
    coefficient = TASKS["bandit"].options["kl_coef"]
    for reward, score, kl in zip(*(curves[name] for name in ("reward", "score", "kl")), strict=True):
        assert reward == pytest.approx(score - coefficient * kl, abs=1e-4)


@needs_stock
@pytest.mark.filterwarnings("ignore")
def test_a_trainer_that_takes_fewer_steps_is_found_out():
    """TRL's trainer steps after each minibatch only where its data set is one batch."""
    task = TASKS["bandit"]
    roles = task.roles(0)
    twice = dataclasses.replace(roles, prompts=concatenate_datasets([roles.prompts, roles.prompts]))
    with pytest.raises(RuntimeError, match="took 2 optimizer steps in 1 iterations, not 4"):
        train(MODES[STOCK], twice, task.all_options(0, 1))
