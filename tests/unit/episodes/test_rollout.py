"""Rollouts of several turns: tokens are kept as they were sampled, and rewards stand where their turn ends."""

from dataclasses import replace

import pytest
import torch
from ppo_helpers import advantaged, make_ppo, runtime, tiny
from torch import nn

from envs.tasks.dialogue import DialogueEnv
from envs.tasks.prompts import PromptsEnv
from envs.vector import TextVectorEnv
from reward_models.chat import encode_prompt, prepare_tokenizer, turn_suffix_ids
from reward_models.combine import CombinedReward, Component
from rlhf.config.model import TokenizerConfig
from rlhf.config.ppo import RolloutConfig
from rlhf.episodes.environment_source import EnvironmentSource
from rlhf.episodes.lengths import Lengths
from rlhf.episodes.plan import plan
from rlhf.errors import DataError
from rlhf.generation.torch_generator import TorchGenerator
from rlhf.models.scratch import train_tokenizer


def scenario(number, *needs):
    """A customer whose needs are met by any word that begins like one of the given phrases."""
    needs = [
        {
            "name": f"need {n}", "mentions": [phrases], "insist": f"I said {n}!", "thanks": "Good.",
            "example": phrases[0].rstrip("*"), **({"ask": f"And {n}?"} if n else {}),
        }
        for n, phrases in enumerate(needs)
    ]  # fmt: skip
    return {
        "id": f"s{number}", "domain": "shop", "opening": f"The lamp {number} is dead.", "needs": needs,
        "avoid": ["zzz"], "offended": "How rude.", "closing": "Bye.",
    }  # fmt: skip


# Babble meets some of these needs now and then; one it never meets.
LETTERS = [f"{letter}*" for letter in "abcdefghijklmnopqrstuvwxyz"]
VOWELS = [f"{letter}*" for letter in "aeiou"]
SCENARIOS = [scenario(0, LETTERS), scenario(1, VOWELS, LETTERS), scenario(2, ["never ever"]), scenario(3, VOWELS)]
LENGTHS = Lengths(max_prompt_tokens=500, max_response_tokens=8, max_turns=9)


@pytest.fixture(scope="module")
def tokenizer():
    texts = [text for s in SCENARIOS for text in (s["opening"], "See what the other one said about it.")]
    return prepare_tokenizer(train_tokenizer(texts * 10, TokenizerConfig(vocab_size=300), 512))


@pytest.fixture(scope="module")
def policy(tokenizer):
    model = tiny(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id).eval()
    layer = nn.Linear(16, len(tokenizer))
    layer.weight = model.lm_head.weight
    nn.init.zeros_(layer.bias)
    layer.bias.data[tokenizer.eos_token_id] = 5.0  # so that some responses stop and others do not
    model.lm_head = layer
    return model


class Recorder(TorchGenerator):
    """A generator that remembers what it was asked and what it said."""

    def generate(self, requests):
        contexts = [list(request.prompt_ids) for request in requests]
        results = super().generate(requests)
        self.calls = [*getattr(self, "calls", []), list(zip(contexts, results, strict=True))]
        return results


def recorder(policy, tokenizer, **options):
    made = Recorder(policy, RolloutConfig(**options), (tokenizer.eos_token_id,), tokenizer.decode, runtime())
    made.update()
    return made


def dialogues(tokenizer, *, environments=8, max_turns=4, lengths=LENGTHS, scorer=None, **options):
    envs = [DialogueEnv(SCENARIOS, max_turns=max_turns) for _ in range(environments)]
    return EnvironmentSource(TextVectorEnv(envs, scorer), tokenizer, lengths, **options)


def collect(source, sampler, *, count=8, iteration=0):
    return source.collect(sampler, plan(source.num_prompts, count, 1, iteration, 0), seed=0, iteration=iteration)


def own_turns(episode):
    """Where each run of the policy's tokens begins and ends."""
    mask = [False, *episode.response_mask, False]
    edges = [i for i in range(len(mask) - 1) if mask[i] != mask[i + 1]]
    return list(zip(edges[::2], edges[1::2], strict=True))


def test_an_episode_is_what_was_sampled_plus_the_environments_tokens(policy, tokenizer):
    sampler = recorder(policy, tokenizer)
    source = dialogues(tokenizer)
    episodes = collect(source, sampler)
    said = {id(episode): [] for episode in episodes}
    for turn, call in enumerate(sampler.calls):
        going_on = [episode for episode in episodes if len(episode.responses) > turn]
        for episode, (context, result) in zip(going_on, call, strict=True):
            assert episode.token_ids[: len(context)] == context
            assert episode.response_mask[len(context)]
            said[id(episode)].append(result)
    for episode in episodes:
        user = [m for m in episode.messages if m["role"] == "user"]
        ids, mask, logprobs = encode_prompt(tokenizer, episode.prompt), [], []
        mask, logprobs = [False] * len(ids), [0.0] * len(ids)
        for turn, result in enumerate(said[id(episode)]):
            ids, mask = ids + result.token_ids, mask + [True] * len(result.token_ids)
            logprobs = logprobs + result.logprobs
            if turn + 1 < len(episode.responses):
                suffix = turn_suffix_ids(tokenizer, [user[turn + 1]], stopped=result.stop_reason == "eos")
                ids, mask, logprobs = ids + suffix, mask + [False] * len(suffix), logprobs + [0.0] * len(suffix)
        assert episode.token_ids == ids
        assert episode.response_mask == mask
        assert episode.sampled_logprobs == logprobs
        assert episode.stop_reason == said[id(episode)][-1].stop_reason
    assert len({len(episode.responses) for episode in episodes}) > 1
    assert {(episode.terminated, episode.truncated) for episode in episodes} == {(True, False), (False, True)}
    assert {result.stop_reason for results in said.values() for result in results} == {"eos", "length"}


def test_babble_would_not_survive_being_tokenised_again(policy, tokenizer):
    """What the rule is for: decoding and encoding gives other ids, and the update would be of tokens never sampled."""
    changed = 0
    for episode in collect(dialogues(tokenizer), recorder(policy, tokenizer)):
        for first, last in own_turns(episode):
            ids = episode.token_ids[first:last]
            changed += tokenizer.encode(tokenizer.decode(ids), add_special_tokens=False) != ids
    assert changed > 0


def test_rewards_stand_on_the_last_token_of_each_turn(policy, tokenizer):
    for episode in collect(dialogues(tokenizer), recorder(policy, tokenizer)):
        env = DialogueEnv(SCENARIOS, max_turns=4)
        env.reset(options={"index": episode.index})
        expected = [0.0] * len(episode.token_ids)
        for response, (_, end) in zip(episode.responses, own_turns(episode), strict=True):
            _, expected[end - 1], terminated, truncated, info = env.step(response)
        assert episode.rewards == expected
        assert (episode.terminated, episode.truncated) == (terminated, truncated)
        assert terminated != truncated
        assert episode.messages == info["messages"]
        assert episode.columns == {"scenario": f"s{episode.index}", "domain": "shop"}
        assert episode.score == pytest.approx(sum(expected), abs=1e-12)


def test_a_scorer_adds_to_the_last_turn_and_is_told_the_ids(policy, tokenizer):
    asked = []

    def length(prompts, completions, completion_ids, **_):
        asked.append(completion_ids)
        return [float(len(ids)) for ids in completion_ids]

    plain = collect(dialogues(tokenizer), recorder(policy, tokenizer))
    scored = collect(
        dialogues(tokenizer, scorer=CombinedReward([Component("length", length, weight=10.0)])),
        recorder(policy, tokenizer),
    )
    for without, episode in zip(plain, scored, strict=True):
        first, last = own_turns(episode)[-1]
        assert episode.token_ids == without.token_ids
        assert episode.components == {"length": last - first}
        assert episode.rewards[-1] == pytest.approx(without.rewards[-1] + 10 * (last - first), abs=1e-12)
        assert episode.rewards[:-1] == without.rewards[:-1]
        assert episode.token_ids[first:last] in [ids for call in asked for ids in call]


@pytest.mark.parametrize("environments", [1, 3, 8, 20])
def test_the_number_of_environments_changes_no_episode(policy, tokenizer, environments):
    expected = collect(dialogues(tokenizer), recorder(policy, tokenizer, batch_size=1))
    got = collect(dialogues(tokenizer, environments=environments), recorder(policy, tokenizer, batch_size=5))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one.sampled_logprobs, other.sampled_logprobs, atol=1e-5, rtol=0)
        assert replace(one, sampled_logprobs=[]) == replace(other, sampled_logprobs=[])


def test_turn_and_token_limits_truncate(policy, tokenizer):
    lengths = replace(LENGTHS, max_turns=2)
    for episode in collect(dialogues(tokenizer, max_turns=9, lengths=lengths), recorder(policy, tokenizer)):
        assert len(episode.responses) <= 2
        assert episode.truncated is not episode.terminated
        assert episode.response_mask[-1]
    limit = 60
    lengths = replace(LENGTHS, max_total_tokens=limit)
    episodes = collect(dialogues(tokenizer, max_turns=9, lengths=lengths), recorder(policy, tokenizer))
    for episode in episodes:
        assert len(episode.token_ids) <= limit
        assert episode.response_mask[-1]
        assert episode.truncated is not episode.terminated
    assert any(1 < len(episode.responses) < 9 and episode.truncated for episode in episodes)


@pytest.mark.parametrize("limits", [{"max_turns": 2}, {"max_total_tokens": 60}])
def test_episodes_that_the_rollout_cuts_off_are_scored_too(policy, tokenizer, limits):
    """A long dialogue must not escape the reward functions, and its score stands on the policy's last token."""
    scorer = CombinedReward([Component("one", lambda prompts, **_: [1.0] * len(prompts), weight=100.0)])
    lengths = replace(LENGTHS, **limits)
    episodes = collect(dialogues(tokenizer, max_turns=9, lengths=lengths, scorer=scorer), recorder(policy, tokenizer))
    plain = collect(dialogues(tokenizer, max_turns=9, lengths=lengths), recorder(policy, tokenizer))
    assert any(episode.truncated for episode in episodes)
    for episode, without in zip(episodes, plain, strict=True):
        assert episode.components == {"one": 1.0}
        assert episode.rewards[-1] == pytest.approx(without.rewards[-1] + 100.0, abs=1e-9)
        assert episode.score == pytest.approx(without.score + 100.0, abs=1e-9)


def test_a_prompt_that_leaves_no_room_for_a_response_is_an_error(policy, tokenizer):
    """The limit is what the model's positions allow: not even one token may lie beyond it."""
    prompt = encode_prompt(tokenizer, [{"role": "user", "content": SCENARIOS[0]["opening"]}])
    with pytest.raises(DataError, match=r"prompt \d has \d+ tokens"):
        collect(
            dialogues(tokenizer, lengths=replace(LENGTHS, max_total_tokens=len(prompt))), recorder(policy, tokenizer)
        )


def test_stop_strings_are_cut_off_the_text_and_kept_in_the_tokens(policy, tokenizer):
    sampler = recorder(policy, tokenizer, stop_strings=["e"])
    episodes = collect(dialogues(tokenizer, stop_strings=("e",)), sampler)
    found = [e for e in episodes if e.stop_reason == "stop_string"]
    assert found
    assert not any("e" in response for episode in episodes for response in episode.responses)
    for episode in found:
        first, last = own_turns(episode)[-1]
        assert "e" in tokenizer.decode(episode.token_ids[first:last])


def test_a_prompt_that_is_too_long_is_an_error(policy, tokenizer):
    with pytest.raises(DataError, match=r"prompt \d has \d+ tokens; max_prompt_tokens is 5.*The lamp"):
        collect(dialogues(tokenizer, lengths=replace(LENGTHS, max_prompt_tokens=5)), recorder(policy, tokenizer))


def test_a_trainer_learns_from_dialogues(tmp_path, policy, tokenizer):
    """Sampler and trainer agree on every token of the policy, in later turns too, and an update goes through."""
    trainer = make_ppo(policy, source=dialogues(tokenizer), tokenizer=tokenizer, max_response_tokens=8,
        epochs=1, whiten_advantages=False,
    )  # fmt: skip
    episodes = trainer.rollout(0)
    batch = advantaged(trainer, episodes)
    assert batch.mask.sum().item() == sum(episode.response_length for episode in episodes)
    assert (batch.logprobs - batch.sampled_logprobs)[batch.mask].abs().max() <= 1e-5
    assert batch.truncated.tolist() == [episode.truncated for episode in episodes]
    means = trainer.update(batch, 0).means()
    assert (means["ratio"], means["approx_kl"]) == (1.0, 0.0)


def test_single_turn_prompts_keep_their_form(policy, tokenizer):
    rows = [{"prompt": "Hello", "tag": 1}, {"prompt": [{"role": "user", "content": "Hi"}], "tag": 2}]
    seen = []

    def reward(prompts, completions, tag, **_):
        seen.extend(zip(prompts, completions, tag, strict=True))
        return [float(number) for number in tag]

    for index in (0, 1):
        source = EnvironmentSource(
            TextVectorEnv([PromptsEnv([rows[index]])], CombinedReward([Component("tag", reward)])), tokenizer, LENGTHS
        )
        (episode,) = collect(source, recorder(policy, tokenizer), count=1)
        assert episode.prompt == rows[index]["prompt"]
        assert episode.token_ids[: episode.response_mask.index(True)] == encode_prompt(tokenizer, episode.prompt)
        assert (episode.score, episode.terminated, len(episode.responses)) == (index + 1.0, True, 1)
        text = episode.responses[0]
        assert seen[-1] == (episode.prompt, [{"role": "assistant", "content": text}] if index else text, index + 1)
