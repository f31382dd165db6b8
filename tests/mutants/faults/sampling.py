"""Faults in how episodes come about: noise, cache, sampler, turns of a conversation, tokenised data sets."""

from ..fault import Fault

_PLAYED = ("rollout::test_an_episode_is_what_was_sampled_plus_the_environments_tokens",)
_LITERAL = ("sampler::test_responses_are_those_of_the_literal_loop",)
_REWARDS = ("rollout::test_rewards_stand_on_the_last_token_of_each_turn",)
_LAST_TOKEN = ("token_dataset::test_the_score_is_on_the_last_token_and_nowhere_else",)
_NAMES = ("sampler::test_noise_is_a_function_of_its_name",)

FAULTS = (
    Fault(
        "noise-without-sample-index", "noise.py",
        "prompt_index, sample_index, len(prompt_ids)]", "prompt_index, len(prompt_ids)]",
        "all samples of a prompt are the same response", _NAMES,
    ),
    Fault(
        "noise-without-iteration", "noise.py",
        "[seed, iteration, prompt_index,", "[seed, prompt_index,",
        "a prompt is answered with the same noise in every iteration", _NAMES,
    ),
    Fault(
        "noise-without-context", "noise.py",
        "hashlib.blake2b(head + body,", "hashlib.blake2b(head,",
        "later turns repeat the noise of contexts as long as theirs", _NAMES,
    ),
    Fault(
        "cache-hides-the-token-itself", "cache.py",
        "columns[None, :] > lengths[:, None]", "columns[None, :] >= lengths[:, None]",
        "a token does not see itself", _LITERAL,
    ),
    Fault(
        "cache-shows-padding", "cache.py",
        "self.lengths[rows] = lengths", "self.lengths[rows] = lengths.max()",
        "short prompts attend to the padding behind them", _LITERAL,
    ),
    Fault(
        "cache-moves-keys-alone", "cache.py",
        "layer.values[target, :, :length] = layer.values[source, :, :length]",
        "layer.values[target, :, :length] = layer.values[target, :, :length]",
        "a row that moves keeps another row's values", _LITERAL,
    ),
    Fault(
        "cache-forgets-the-length", "cache.py",
        "        self.lengths[target] = length\n", "",
        "a row that moves has another row's length", _LITERAL,
    ),
    Fault(
        "turn-reward-one-early", "rollout.py",
        "play.rewards[-1] = float(rewards[number])", "play.rewards[-2] = float(rewards[number])",
        "the reward is on the token before the last", _REWARDS,
    ),
    Fault(
        "response-repeated", "rollout.py",
        'info["messages"][said + 1 :]', 'info["messages"][said:]',
        "the policy reads its own answer twice", _PLAYED,
    ),
    Fault(
        "end-of-turn-forgotten", "rollout.py",
        'stopped=play.stop_reason == "eos"', "stopped=True",
        "a response cut at its limit runs into the next turn", _PLAYED,
    ),
    Fault(
        "turn-limit-terminates", "rollout.py",
        "if len(play.responses) == self.lengths.max_turns:\n            play.truncated = True",
        "if len(play.responses) == self.lengths.max_turns:\n            play.terminated = True",
        "an episode cut at its last turn is not bootstrapped", ("rollout_oracles",),
    ),
    Fault(
        "environment-tokens-learnt", "rollout.py",
        "own = logprobs is not None", "own = True",
        "the policy is trained on what the environment said", _PLAYED,
    ),
    Fault(
        "score-of-the-last-turn", "rollout.py",
        "score=float(sum(play.rewards))", "score=float(play.rewards[-1])",
        "what earlier turns earned is not in the score", _REWARDS,
    ),
    Fault(
        "same-order-every-epoch", "rollout.py",
        "np.random.default_rng((seed, epoch))", "np.random.default_rng(seed)",
        "prompts come in one order for ever", ("plan",),
    ),
    Fault(
        "repeated-prompt-repeats-its-samples", "rollout.py",
        "firsts.append(seen[index] * samples_per_prompt)", "firsts.append(0)",
        "a prompt that comes twice in an iteration gets the same responses", ("plan",),
    ),
    Fault(
        "stop-string-in-the-text", "rollout.py",
        "text[: min(cuts)]", "text[: max(cuts)]",
        "the text is cut at the last stop string, not at the first", ("rollout_oracles",),
    ),
    Fault(
        "data-set-score-one-early", "token_dataset.py",
        "episode.rewards[-1] = float(", "episode.rewards[-2] = float(",
        "the score is on the token before the last", _LAST_TOKEN,
    ),
    Fault(
        "stop-token-not-learnt", "token_dataset.py",
        "[True] * length,", '[True] * (length - 1) + [sampled.stop_reason != "eos"],',
        "the policy never learns to stop", _LAST_TOKEN,
    ),
    Fault(
        "reward-model-read-at-the-start", "token_dataset.py",
        "module, tokens, tokens.last)", "module, tokens, tokens.grid[:, 0])",
        "conversations are judged by their first token",
        ("token_dataset::test_a_reward_model_is_read_at_the_last_real_token_in_any_company",),
    ),
    Fault(
        "reward-weight-forgotten", "token_dataset.py",
        "weight=weight)", "weight=1.0)",
        "every reward weighs 1", ("token_dataset::test_modules_and_functions_are_weighted_and_kept_apart",),
    ),
    Fault(
        "attention-mask-ignored", "token_dataset.py",
        'if "attention_mask" in row:', "if False:",
        "padding that looks like a letter is part of the prompt",
        ("agreement::test_oracle_10_padding_side_of_the_data_set_changes_nothing",),
    ),
)  # fmt: skip
