"""TokenLevel: one token an action, nothing re-tokenised, limits explicit."""

import numpy as np
import pytest
from gymnasium.spaces import Text
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from envs import TextEnvError, TokenLevel
from envs.tasks.dialogue import DialogueEnv
from envs.tasks.prompts import PromptsEnv
from reward_models.chat import encode_prompt, prepare_tokenizer


def byte_tokenizer(**special):
    """A byte-level tokenizer with one merge, so that "he" can be written in two ways."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, "he"])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[("h", "e")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


@pytest.fixture(scope="module")
def tokenizer():
    return prepare_tokenizer(byte_tokenizer(eos_token="<eos>"), "plain")


def type_in(env, ids):
    return [env.step(i) for i in ids]


def ids_of(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


def shown(observation, tokenizer):
    return [i for i in observation.tolist() if i != tokenizer.pad_token_id]


def test_reset_shows_the_prompt_at_the_right_end(tokenizer):
    env = TokenLevel(PromptsEnv(["Hi?"]), tokenizer, max_response_tokens=5, max_context_tokens=40)
    observation, info = env.reset(seed=0)
    prompt = encode_prompt(tokenizer, "Hi?")
    assert observation.shape == (40,)
    assert observation.dtype == np.int64
    assert observation[-len(prompt) :].tolist() == prompt
    assert (observation[: -len(prompt)] == tokenizer.pad_token_id).all()
    assert observation in env.observation_space
    assert (info["prompt"], info["text"], info["stop_reason"]) == ("Hi?", "", None)


def test_eos_ends_the_response_and_the_reward_lands_there(tokenizer):
    env = TokenLevel(DialogueEnv(max_turns=1), tokenizer, max_response_tokens=200, max_context_tokens=600)
    env.reset(options={"index": 0})
    ids = ids_of(tokenizer, "I will trace it, what is the order number?")
    steps = type_in(env, [*ids, tokenizer.eos_token_id])
    assert [s[1] for s in steps[:-1]] == [0.0] * len(ids)
    assert not any(s[2] or s[3] for s in steps[:-1])
    assert steps[-2][4] == {
        "text": "I will trace it, what is the order number?",
        "stop_reason": None,
        "context_full": False,
    }
    _, reward, terminated, truncated, info = steps[-1]
    assert reward == pytest.approx(2 / 3)
    assert (terminated, truncated) == (False, True)
    assert info["stop_reason"] == "eos"
    assert info["text"] == info["messages"][1]["content"] == "I will trace it, what is the order number?"
    assert info["needs_met"] == ["search", "identifier"]


def test_the_limit_passes_the_response_on_and_says_so(tokenizer):
    env = TokenLevel(PromptsEnv(["Hi?"]), tokenizer, max_response_tokens=3, max_context_tokens=60)
    env.reset()
    steps = type_in(env, ids_of(tokenizer, "abc"))
    _, _, terminated, truncated, info = steps[-1]
    assert (terminated, truncated, info["stop_reason"]) == (True, False, "length")
    assert info["messages"][-1] == {"role": "assistant", "content": "abc"}


def test_eos_in_the_last_place_is_a_stop(tokenizer):
    env = TokenLevel(PromptsEnv(["Hi?"]), tokenizer, max_response_tokens=2, max_context_tokens=60)
    env.reset()
    assert type_in(env, [*ids_of(tokenizer, "a"), tokenizer.eos_token_id])[-1][4]["stop_reason"] == "eos"


def test_an_immediate_eos_is_an_empty_response(tokenizer):
    env = TokenLevel(PromptsEnv(["Hi?"]), tokenizer, 4, 60)
    env.reset()
    info = env.step(tokenizer.eos_token_id)[4]
    assert info["messages"][-1] == {"role": "assistant", "content": ""}


def test_the_policys_own_tokens_are_never_encoded_again(tokenizer):
    env = TokenLevel(DialogueEnv(), tokenizer, max_response_tokens=20, max_context_tokens=800)
    _, first = env.reset(options={"index": 1})
    split = [*ids_of(tokenizer, "h"), *ids_of(tokenizer, "e")]
    assert ids_of(tokenizer, "he") != split
    observation, _, _, _, info = type_in(env, [*split, tokenizer.eos_token_id])[-1]
    before = encode_prompt(tokenizer, first["prompt"])
    seen = shown(observation, tokenizer)
    assert seen[: len(before) + 3] == [*before, *split, tokenizer.eos_token_id]
    assert info["text"] == "he"
    text = tokenizer.decode(seen)
    assert text.endswith(f"\nUser:\n{info['messages'][-1]['content']}\nAssistant:\n")


def test_after_a_response_that_was_cut_off_the_turn_is_closed(tokenizer):
    def suffix(ids, limit):
        env = TokenLevel(DialogueEnv(), tokenizer, max_response_tokens=limit, max_context_tokens=800)
        start = len(shown(env.reset(options={"index": 1})[0], tokenizer))
        return shown(type_in(env, ids)[-1][0], tokenizer)[start:]

    word = ids_of(tokenizer, "ab")
    assert suffix(word, 2) == suffix([*word, tokenizer.eos_token_id], 9)


def test_the_next_turn_starts_with_an_empty_response(tokenizer):
    env = TokenLevel(DialogueEnv(), tokenizer, max_response_tokens=3, max_context_tokens=900)
    env.reset(options={"index": 0})
    type_in(env, ids_of(tokenizer, "abc"))
    assert env.step(ids_of(tokenizer, "d")[0])[4]["text"] == "d"


def test_a_full_context_ends_the_response_then_the_episode(tokenizer):
    prompt = len(encode_prompt(tokenizer, DialogueEnv().reset(options={"index": 0})[1]["prompt"]))
    env = TokenLevel(DialogueEnv(), tokenizer, max_response_tokens=100, max_context_tokens=prompt + 2)
    env.reset(options={"index": 0})
    first, last = type_in(env, ids_of(tokenizer, "ab"))
    assert (first[2], first[3]) == (False, False)
    observation, reward, terminated, truncated, info = last
    assert (reward, terminated, truncated) == (-0.1, False, True)
    assert (info["stop_reason"], info["context_full"]) == ("length", True)
    assert observation in env.observation_space
    assert tokenizer.decode(observation).endswith("Assistant:\n")
    with pytest.raises(TextEnvError, match="call reset"):
        env.step(0)


def test_room_for_one_more_token_is_room(tokenizer):
    def end_of_turn(limit):
        env = TokenLevel(DialogueEnv(), tokenizer, max_response_tokens=1, max_context_tokens=limit)
        env.reset(options={"index": 0})
        observation, _, _, truncated, _ = env.step(5)
        return len(shown(observation, tokenizer)), truncated

    used, _ = end_of_turn(900)
    assert end_of_turn(used) == (used, True)
    assert end_of_turn(used + 1) == (used, False)


def test_each_turn_is_appended_once(tokenizer):
    env = TokenLevel(DialogueEnv(), tokenizer, max_response_tokens=2, max_context_tokens=900)
    env.reset(options={"index": 0})
    observation, _, _, _, info = type_in(env, ids_of(tokenizer, "abcd"))[-1]
    said = [message["content"] for message in info["messages"]]
    text = (
        f"User:\n{said[0]}\nAssistant:\nab<eos>\nUser:\n{said[2]}\nAssistant:\ncd<eos>\nUser:\n{said[4]}\nAssistant:\n"
    )
    assert tokenizer.decode(shown(observation, tokenizer)) == text


def test_an_end_in_a_full_context_stays_a_termination(tokenizer):
    prompt = len(encode_prompt(tokenizer, "Hi?"))
    env = TokenLevel(PromptsEnv(["Hi?"]), tokenizer, 100, prompt + 1)
    env.reset()
    _, _, terminated, truncated, info = env.step(5)
    assert (terminated, truncated, info["context_full"]) == (True, False, False)


def test_a_prompt_that_fills_the_context_is_refused(tokenizer):
    prompt = len(encode_prompt(tokenizer, "Hi?"))
    env = TokenLevel(PromptsEnv(["Hi?"]), tokenizer, 4, prompt)
    with pytest.raises(TextEnvError, match=rf"{prompt} tokens.*max_context_tokens {prompt}.*'Hi\?'"):
        env.reset()


@pytest.mark.parametrize("action", [-1, 10**6, "a", 1.5, None])
def test_an_action_must_be_a_token_id(tokenizer, action):
    env = TokenLevel(PromptsEnv(), tokenizer, 4, 300)
    env.reset(seed=0)
    with pytest.raises(TextEnvError, match=rf"from 0 to {len(tokenizer) - 1}"):
        env.step(action)
    env.step(np.int64(3))


def test_a_step_needs_an_episode(tokenizer):
    env = TokenLevel(PromptsEnv(), tokenizer, 1, 300)
    with pytest.raises(TextEnvError, match="call reset"):
        env.step(0)
    env.reset()
    env.step(0)
    with pytest.raises(TextEnvError, match="call reset"):
        env.step(0)


@pytest.mark.parametrize(("limits", "name"), [((0, 10), "max_response_tokens"), ((4, -1), "max_context_tokens")])
def test_limits_must_be_positive(tokenizer, limits, name):
    with pytest.raises(TextEnvError, match=f"{name} is .*at least 1"):
        TokenLevel(PromptsEnv(), tokenizer, *limits)


@pytest.mark.parametrize("special", [{}, {"eos_token": "<eos>"}, {"eos_token": "<eos>", "pad_token": "<eos>"}])
def test_an_unprepared_tokenizer_is_refused(special):
    with pytest.raises(TextEnvError, match="prepare_tokenizer"):
        TokenLevel(PromptsEnv(), byte_tokenizer(**special), 4, 300)


def test_spaces_that_are_not_text_are_refused(tokenizer):
    env = PromptsEnv()
    env.observation_space = Text(5)
    TokenLevel(env, tokenizer, 4, 300)
    env.action_space = TokenLevel(PromptsEnv(), tokenizer, 4, 300).action_space
    with pytest.raises(TextEnvError, match="must be text"):
        TokenLevel(env, tokenizer, 4, 300)


def test_close_reaches_the_text_environment(tokenizer):
    closed = []

    class Closing(PromptsEnv):
        def close(self):
            closed.append(self)

    TokenLevel(Closing(), tokenizer, 4, 300).close()
    assert len(closed) == 1
