"""From responses to rewards and advantages: where the score lands, who is penalised, and what conversations share."""

import math

import pytest
import torch
from ppo_enumerable import PrefixCritic, PrefixPolicy
from ppo_helpers import (
    EOS,
    PAD,
    advantaged,
    episode,
    letters_tokenizer,
    make_ppo,
    prompts,
    random_episodes,
    tiny,
    with_lora,
)

from rlhf.episodes.episode import Episode
from rlhf.packing.microbatch import microbatches
from rlhf.ppo.metrics import rollout_metrics

A, B = 3, 4
# What the policy would say to each prompt if nothing stopped it; at most three tokens are sampled.
SCRIPT = {
    (3,): (A, EOS, B),
    (4,): (A, B, EOS),
    (5,): (A, A, A),
    (6,): (EOS, A, A),
    (7,): (PAD, EOS, A),
}


def scripted(folder, pad="<p>", **options):
    """A trainer whose policy says `SCRIPT`, its episodes, its batch, and the texts that the reward saw."""
    states = [prompt + said[:t] for prompt, said in SCRIPT.items() for t in range(3)]
    rows = {prompt + said[:t]: torch.where(torch.arange(8) == said[t], 0.0, -99.0).double()
            for prompt, said in SCRIPT.items() for t in range(3)}  # fmt: skip
    seen = {}

    def reward(prompts, completions, completion_ids, **_):
        seen.update(zip(prompts, completions, strict=True))
        return [10.0 + len(ids) for ids in completion_ids]

    trainer = make_ppo(PrefixPolicy(states, 8).load(rows), reference=PrefixPolicy(states, 8).load(rows),
        critic_model=PrefixCritic(states).load(dict.fromkeys(states, 0.0)), tokenizer=letters_tokenizer(pad=pad),
        reward=reward, dataset=prompts(list(SCRIPT)), episodes_per_iteration=5, max_response_tokens=3,
        kl_coefficient=0.5, whiten_advantages=False, **options,
    )  # fmt: skip
    episodes = sorted(trainer.rollout(0), key=lambda e: e.index)
    return trainer, episodes, advantaged(trainer, episodes), [seen[letter] for letter in "abcde"]


@pytest.mark.parametrize("pad", ["<p>", "<e>"])
@pytest.mark.parametrize(("action", "unfinished"), [("none", 13.0), ("replace", -1.0), ("subtract", 12.0)])
def test_oracle_16_the_reward_table(tmp_path, pad, action, unfinished):
    value = {"none": 0.0, "replace": -1.0, "subtract": 1.0}[action]
    options = {"missing_stop_action": action, "missing_stop_value": value}
    _, episodes, batch, texts = scripted(tmp_path, pad, **options)
    expected = [[0, 12, 0], [0, 0, 13], [0, 0, unfinished], [11, 0, 0], [0, 12, 0]]
    torch.testing.assert_close(batch.rewards, torch.tensor(expected).double(), atol=1e-12, rtol=0)
    assert batch.mask.tolist() == [
        [True, True, False], [True] * 3, [True] * 3, [True, False, False], [True, True, False],
    ]  # fmt: skip
    assert batch.stopped.tolist() == [True, True, False, True, True]
    assert [e.stop_reason for e in episodes] == ["eos", "eos", "length", "eos", "eos"]
    assert texts[:4] == ["a", "a b", "a a a", ""]
    (part,) = microbatches(batch, range(5), 10**6)
    learnt = dict(zip(part.rows.tolist(), part.targets.split(batch.mask[part.rows].sum(1).tolist()), strict=True))
    assert [learnt[row].tolist() for row in range(5)] == [[A, EOS], [A, B, EOS], [A, A, A], [EOS], [PAD, EOS]]


def test_oracle_16_a_stop_token_of_ones_own(tmp_path):
    """With b as the stop token, EOS is a token like any other and the penalty asks for b."""
    options = {"stop_token_ids": (B,), "missing_stop_action": "subtract", "missing_stop_value": 20.0}
    _, episodes, batch, texts = scripted(tmp_path, **options)
    expected = [[0, 0, 13], [0, 12, 0], [0, 0, -7], [0, 0, -7], [0, 0, -7]]
    torch.testing.assert_close(batch.rewards, torch.tensor(expected).double(), atol=1e-12, rtol=0)
    assert [e.stop_reason for e in episodes] == ["eos", "eos", "length", "length", "length"]
    assert texts[:2] == ["a", "a"]


def test_oracle_16_each_token_pays_its_own_kl_and_the_last_one_gets_the_score(tmp_path):
    episodes = random_episodes(5, seed=2)
    trainer = make_ppo(
        tiny().double(), reference=tiny(seed=1).double(), episodes=episodes, kl_coefficient=0.3, temperature=0.7
    )
    batch = advantaged(trainer)
    for row, played in enumerate(episodes):
        ids = torch.tensor(played.token_ids)
        with torch.no_grad():
            own, frozen = (
                (model(ids[None]).logits[0] / 0.7).log_softmax(-1)
                for model in (trainer.actor_critic.policy, tiny(seed=1).double())
            )
        t = 0
        for position, is_own in enumerate(played.response_mask):
            if is_own:
                token = ids[position]
                gap = float(own[position - 1, token] - frozen[position - 1, token])
                assert float(batch.kl[row, t]) == pytest.approx(gap, abs=1e-5)  # Llama's norm goes through float32
                assert float(batch.rewards[row, t]) == pytest.approx(played.rewards[position] - 0.3 * gap, abs=1e-5)
                t += 1
        assert (batch.rewards[row, t:] == 0).all()
    assert batch.kl.abs().max() > 0.1
    metrics = rollout_metrics(episodes, batch)
    assert metrics["kl"] == pytest.approx(float(batch.kl.sum() / 5), abs=1e-12)
    assert metrics["score"] == pytest.approx(sum(e.score for e in episodes) / 5, abs=1e-12)


def test_oracle_17_the_advantage_at_eos_does_not_depend_on_longer_neighbours(tmp_path):
    short = episode([3, 4], [5, EOS], 1.0)
    long = episode([3], [4, 5, 6, 7, 3, 4, 5], -2.0, stop_reason="length", index=1)
    found = []
    for episodes in ([short], [short, long]):
        trainer = make_ppo(tiny().double(), reference=tiny(seed=1).double(), episodes=episodes,
                               whiten_advantages=False)  # fmt: skip
        torch.nn.init.ones_(trainer.actor_critic.value_model.score.weight)
        batch = advantaged(trainer)
        found.append(batch.advantages[0, :2])
        assert (batch.advantages[0, 2:] == 0).all()
    torch.testing.assert_close(*found, atol=1e-12, rtol=0)


CONVERSATION = [2, 3, 4, 5, 6, 3, 7, 4, 1]
OWN = [False, True, True, False, False, True, False, True, True]
REWARDS = [0.0, 0.0, 0.5, 0.0, 0.0, -1.0, 0.0, 0.0, 2.0]


def conversation(rewards=REWARDS):
    return Episode(
        prompt="", token_ids=CONVERSATION, response_mask=OWN, sampled_logprobs=[0.0] * 9, rewards=rewards,
        responses=["", "", ""], messages=[], stop_reason="eos", terminated=True, truncated=False, score=1.5,
    )  # fmt: skip


def score_conversation(folder, values, played):
    states = [tuple(CONVERSATION[:end]) for end in range(1, 10)]
    policy = PrefixPolicy(states, 8)
    trainer = make_ppo(
        policy, reference=PrefixPolicy(states, 8), episodes=[played], kl_coefficient=0.2, gamma=0.9, gae_lambda=0.8,
        critic_model=PrefixCritic(states).load(dict(zip(states, values, strict=True))), whiten_advantages=False,
    )  # fmt: skip
    rows = torch.randn(2, 9, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64).log_softmax(-1)
    for model, table in zip((policy, trainer.reference.policy), rows, strict=True):
        model.load(dict(zip(states, table, strict=True)))
    return advantaged(trainer, [played]), rows


def test_oracle_19_what_the_environment_says_is_skipped(tmp_path):
    """A equals GAE on the policy's five tokens alone, and no value, reward or token of the environment enters."""
    values = [
        0.3,
        -0.2,
        9.0,
        0.1,
        0.7,
        9.0,
        -0.4,
        0.6,
        9.0,
    ]  # 9.0: states before a token of the environment, or the end
    batch, rows = score_conversation(tmp_path, values, conversation())
    where = [position for position, own in enumerate(OWN) if own]
    rewards = [
        REWARDS[p] - 0.2 * float(rows[0, p - 1, CONVERSATION[p]] - rows[1, p - 1, CONVERSATION[p]]) for p in where
    ]
    before = [values[p - 1] for p in where]
    advantages = [
        sum(
            (0.9 * 0.8) ** (k - t) * (rewards[k] + 0.9 * (before[k + 1] if k < 4 else 0.0) - before[k])
            for k in range(t, 5)
        )
        for t in range(5)
    ]
    assert where == [1, 2, 5, 7, 8]
    assert batch.positions.tolist() == [where]
    assert batch.rewards[0].tolist() == pytest.approx(rewards, abs=1e-12)
    assert batch.advantages[0].tolist() == pytest.approx(advantages, abs=1e-12)
    other = [v if v != 9.0 else -55.0 for v in values]
    garbage = [r if own else math.nan for r, own in zip(REWARDS, OWN, strict=True)]
    again, _ = score_conversation(tmp_path, other, conversation(garbage))
    assert torch.equal(again.advantages, batch.advantages)
    assert torch.equal(again.returns, batch.returns)


@pytest.mark.parametrize("rewards", [False, True])
@pytest.mark.parametrize("advantages", [False, True])
def test_whitening_is_over_the_rollouts_tokens_rewards_before_and_advantages_after(tmp_path, rewards, advantages):
    """Rewards keep their mean and get variance 1, then come the advantages, which lose it; whatever is switched off."""
    episodes = random_episodes(6)
    trainer = make_ppo(
        tiny().double(), reference=tiny(seed=1).double(), episodes=episodes,
        kl_coefficient=0.3, gamma=0.9, gae_lambda=0.8,
        whiten_rewards=rewards, whiten_advantages=advantages,
    )  # fmt: skip
    torch.nn.init.ones_(trainer.actor_critic.value_model.score.weight)
    batch = advantaged(trainer)
    raw = (batch.env_rewards - 0.3 * (batch.logprobs - batch.ref_logprobs))[batch.mask]
    if rewards:
        raw = (raw - raw.mean()) / raw.std(correction=0) + raw.mean()
    torch.testing.assert_close(batch.rewards[batch.mask], raw, atol=1e-7, rtol=0)
    lengths = batch.mask.sum(1).tolist()
    estimates = []
    for row, own in enumerate(raw.split(lengths)):
        values = [*batch.values[row, : lengths[row]].tolist(), 0.0]
        deltas = [float(own[t]) + 0.9 * values[t + 1] - values[t] for t in range(lengths[row])]
        estimates += [sum(0.72 ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))]
    expected = torch.tensor(estimates, dtype=torch.float64)
    torch.testing.assert_close((batch.returns - batch.values)[batch.mask], expected, atol=1e-6, rtol=0)
    if advantages:
        expected = (expected - expected.mean()) / expected.std(correction=0)
    torch.testing.assert_close(batch.advantages[batch.mask], expected, atol=1e-6, rtol=0)
    assert (batch.advantages[~batch.mask] == 0).all()


@pytest.mark.parametrize("advantage", ["gae", "reinforce"])
def test_episodes_that_nobody_scored_stay_out(tmp_path, advantage):
    episodes = random_episodes(6)
    trainer = make_ppo(tiny(), episodes=episodes, advantage=advantage, minibatches=1)
    episodes[1].score = episodes[4].score = math.nan
    batch = advantaged(trainer, episodes)
    assert batch.groups.tolist() == [0, 2, 3, 5]
    assert rollout_metrics(episodes, batch)["unscored_episodes"] == 2
    for played in episodes:
        played.score = math.nan
    assert advantaged(trainer, episodes) is None


def test_group_estimators_need_whole_groups(tmp_path):
    episodes = random_episodes(6)
    for number, played in enumerate(episodes):
        played.index = number // 2
    trainer = make_ppo(tiny(), episodes=episodes, advantage="rloo", samples_per_prompt=2)
    episodes[3].score = math.nan
    assert advantaged(trainer, episodes).groups.tolist() == [0, 0, 2, 2]


def test_the_reference_of_adapters_is_the_policy_without_them(tmp_path):
    episodes = random_episodes(4)
    policy = with_lora(tiny(), target_modules="all-linear")
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    trainer = make_ppo(policy, episodes=episodes)
    batch = advantaged(trainer)
    assert trainer.reference is None
    plain = make_ppo(tiny(), episodes=episodes)
    expected = plain.score(plain.rollout(0))
    torch.testing.assert_close(batch.ref_logprobs, expected.logprobs, atol=1e-5, rtol=0)
    assert batch.kl.abs().max() > 0.1
