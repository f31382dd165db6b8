"""How an episode ends, as the engine counts turns, and where its text ends; nothing is sampled here."""

import pytest
from ppo_helpers import letters_tokenizer

from envs.tasks.dialogue import DialogueEnv
from envs.vector import TextVectorEnv
from reward_models.chat import prepare_tokenizer
from rlhf.config.model import TokenizerConfig
from rlhf.episodes.environment_source import EnvironmentSource
from rlhf.episodes.lengths import Lengths
from rlhf.episodes.plan import Start
from rlhf.episodes.text import response_text
from rlhf.generation.generator import Sample
from rlhf.models.scratch import train_tokenizer

SCENARIO = {
    "id": "s", "domain": "shop", "opening": "The lamp is dead.", "avoid": ["zzz"], "offended": "Rude.",
    "closing": "Bye.",
    "needs": [{"name": "need", "mentions": [["lamp"]], "insist": "I said so!", "thanks": "Good.", "example": "lamp"}],
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return prepare_tokenizer(
        train_tokenizer([SCENARIO["opening"], "lamp no"] * 10, TokenizerConfig(vocab_size=300), 512)
    )


def play(tokenizer, words, *, max_turns, env_turns):
    """One episode in which the policy says these words, a turn each."""
    said = iter(words)

    class Speaker:
        def generate(self, requests):
            ids = tokenizer.encode(next(said), add_special_tokens=False)
            return [Sample([*ids, tokenizer.eos_token_id], [-1.0] * (len(ids) + 1), "eos")]

    lengths = Lengths(max_prompt_tokens=500, max_response_tokens=20, max_turns=max_turns)
    source = EnvironmentSource(TextVectorEnv([DialogueEnv([SCENARIO], max_turns=env_turns)]), tokenizer, lengths)
    (episode,) = source.collect(Speaker(), [Start(0, 0, 0)], seed=0, iteration=0)
    return len(episode.responses), episode.terminated, episode.truncated


@pytest.mark.parametrize(
    ("words", "max_turns", "env_turns", "expected"),
    [
        (["lamp"], 3, 9, (1, True, False)),  # what the customer wanted
        (["no", "lamp"], 3, 9, (2, True, False)),
        (["no", "lamp"], 2, 9, (2, True, False)),  # in the very last turn
        (["no", "no"], 9, 2, (2, False, True)),  # the environment's own limit
        (["no", "no", "no"], 3, 9, (3, False, True)),  # the engine's limit: cut off, not finished
        (["no"], 1, 9, (1, False, True)),
    ],
)
def test_an_episode_is_finished_by_its_environment_and_cut_off_by_a_limit(
    tokenizer, words, max_turns, env_turns, expected
):
    assert play(tokenizer, words, max_turns=max_turns, env_turns=env_turns) == expected


@pytest.mark.parametrize("stops", [("b", "d"), ("d", "b"), ("d", "b c", "e")])
def test_text_ends_before_the_stop_string_that_comes_first(stops):
    sampled = Sample([3, 4, 5, 6], [-1.0] * 4, "stop_string")  # a b c d
    assert response_text(letters_tokenizer(), sampled, stops) == "a "


def test_a_stop_token_is_not_text_and_a_limit_cuts_none():
    tokenizer = letters_tokenizer()
    assert response_text(tokenizer, Sample([3, 5], [-1.0] * 2, "eos")) == "a"
    assert response_text(tokenizer, Sample([3, 5], [-1.0] * 2, "length")) == "a c"
