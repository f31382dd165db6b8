"""The table of rollouts against its episodes and its batch: what each token earned, and why, adds up."""

import math

import pytest
from ppo_helpers import episode, make_ppo, random_episodes, tiny

from rlhf.episodes.episode import Episode
from rlhf.ppo.rollout_rows import rollout_rows
from rlhf.ppo.scoring import trainable

PER_TOKEN = {
    "logprob": "logprobs",
    "ref_logprob": "ref_logprobs",
    "value": "values",
    "advantage": "advantages",
    "reward": "rewards",
    "return": "returns",
    "kl": "kl",
}


def texts(token_ids):
    return [f"<{token}>" for token in token_ids]


def iterate(episodes, **settings):
    """One iteration of the loop on these episodes: what it hands to whoever looks on, and the rows of it."""
    seen = []
    ppo = make_ppo(tiny(), episodes=episodes, reference=tiny(seed=1), on_iteration=seen.append, **settings)
    ppo.train()
    trained = trainable(seen[0].episodes, ppo.settings)
    coefficient = seen[0].metrics.get("ppo/kl_coefficient", 0.0)
    return seen[0], rollout_rows(seen[0].episodes, trained, seen[0].batch, texts, coefficient)


def test_a_reward_is_its_score_its_penalty_and_its_kl():
    """Score 2 on the last of three tokens, which was cut off: 1 is subtracted there, and every token pays 0.5 a nat."""
    cut = episode([3], [4, 5, 6], 2.0, stop_reason="length")
    whole = episode([3], [4, 1], 3.0, index=1)
    settings = {"kl_coefficient": 0.5, "missing_stop_action": "subtract", "missing_stop_value": 1.0}
    _, (first, second) = iterate([cut, whole], **settings)
    assert [token["reward_score"] for token in first["tokens"]] == [0.0, 0.0, 2.0]
    assert [token["reward_penalty"] for token in first["tokens"]] == [0.0, 0.0, -1.0]
    assert [token["reward_penalty"] for token in second["tokens"]] == [0.0, 0.0]
    for row in (first, second):
        for token in row["tokens"]:
            assert token["kl"] == pytest.approx(token["logprob"] - token["ref_logprob"], abs=1e-6)
            assert token["kl"] != 0
            assert token["reward_kl"] == pytest.approx(-0.5 * token["kl"], abs=1e-7)
            parts = token["reward_score"] + token["reward_penalty"] + token["reward_kl"]
            assert token["reward"] == pytest.approx(parts, abs=1e-6)
        assert row["reward"] == pytest.approx(row["score"] + row["reward_penalty"] + row["reward_kl"], abs=1e-5)
    assert (first["score"], first["reward_penalty"]) == (2.0, -1.0)


def test_whitened_rewards_are_shown_as_trained_on_and_their_parts_as_they_were():
    iteration, rows = iterate(random_episodes(4), whiten_rewards=True, kl_coefficient=0.5)
    spread = iteration.batch.rewards[iteration.batch.mask].std(correction=0)
    assert spread == pytest.approx(1.0, abs=1e-3)
    shown = [token["reward"] for row in rows for token in row["tokens"]]
    assert shown == iteration.batch.rewards[iteration.batch.mask].tolist()
    assert rows[0]["tokens"][0]["reward_score"] == iteration.episodes[0].rewards[-len(rows[0]["tokens"])]


def test_rows_keep_to_their_episodes_where_some_were_not_scored():
    episodes = random_episodes(5)
    episodes[0].score = episodes[2].score = math.nan
    iteration, rows = iterate(episodes)
    assert [row["index"] for row in rows] == [0, 1, 2, 3, 4]
    for number in (0, 2):
        assert "kl" not in rows[number]
        assert "logprob" not in rows[number]["tokens"][0]
        assert [token["id"] for token in rows[number]["tokens"]] == episodes[number].token_ids[
            -rows[number]["length"] :
        ]
    for at, number in enumerate([1, 3, 4]):
        length = episodes[number].response_length
        for field, name in PER_TOKEN.items():
            expected = getattr(iteration.batch, name)[at, :length].tolist()
            assert [token[field] for token in rows[number]["tokens"]] == expected


def test_rows_keep_to_their_episodes_where_a_group_lost_a_sample():
    """Two prompts, two samples each; the first of prompt 0 has no score, so the second is not trained on either."""
    episodes = [episode([3], [4 + i, 1], float(i), index=i // 2) for i in range(4)]
    for number, played in enumerate(episodes):
        played.sample_index = number % 2
    episodes[0].score = math.nan
    iteration, rows = iterate(episodes, advantage="rloo", samples_per_prompt=2)
    assert len(iteration.batch) == 2
    assert ["logprob" in row["tokens"][0] for row in rows] == [False, False, True, True]
    for at, number in enumerate([2, 3]):
        assert [token["logprob"] for token in rows[number]["tokens"]] == iteration.batch.logprobs[at].tolist()
        assert [token["id"] for token in rows[number]["tokens"]] == [4 + number, 1]
    assert rows[1]["score"] == 1.0


def test_nothing_scored_leaves_what_was_said():
    played = episode([3], [4, 1], math.nan)
    (row,) = rollout_rows([played], [], None, texts, 0.0)
    assert [(token["id"], token["text"], token["turn"]) for token in row["tokens"]] == [(4, "<4>", 1), (1, "<1>", 1)]


def test_turns_and_the_environments_own_words():
    talk = [
        {"role": "system", "content": "Play."},
        {"role": "user", "content": "Guess."},
        {"role": "assistant", "content": "5"},
        {"role": "user", "content": "Higher."},
        {"role": "assistant", "content": "7"},
    ]
    played = Episode(
        prompt=talk[:2],
        token_ids=[3, 3, 4, 1, 3, 3, 5, 6, 1],
        response_mask=[False, False, True, True, False, False, True, True, True],
        sampled_logprobs=[0, 0, -1, -2, 0, 0, -3, -4, -5],
        rewards=[0.0] * 9,
        responses=["5", "7"],
        messages=talk,
        stop_reason="eos",
        terminated=True,
        truncated=False,
    )
    (row,) = rollout_rows([played], [], None, texts, 0.0)
    assert [message["turn"] for message in row["messages"]] == [0, 0, 1, 1, 2]
    assert [message["content"] for message in row["messages"]] == [message["content"] for message in talk]
    assert [(token["id"], token["turn"]) for token in row["tokens"]] == [(4, 1), (1, 1), (5, 2), (6, 2), (1, 2)]
    assert [token["sampled_logprob"] for token in row["tokens"]] == [-1, -2, -3, -4, -5]
    assert (row["token_ids"], row["response_mask"]) == (played.token_ids, played.response_mask)
    assert row["response"] == "5\n\n7"
