"""Episodes from a tokenised data set: rewards as functions and modules, several of them, and impossible prompts."""

import numpy as np
import pytest
import torch
from ppo_helpers import letters_tokenizer, prompts, runtime, tiny
from transformers import LlamaForSequenceClassification
from trl_helpers import make_trainer

from rlhf.config.ppo import RolloutConfig
from rlhf.episodes.lengths import Lengths
from rlhf.episodes.plan import Start
from rlhf.errors import DataError
from rlhf.generation.torch_generator import TorchGenerator
from rlhf.trl.token_dataset import TokenDatasetSource, score_tokens

ROWS = [[3], [4, 5, 6, 7, 3], [5, 5, 3]]


def count(prompts, completions, completion_ids, **_):
    return [float(len(ids)) for ids in completion_ids]


def generator():
    made = TorchGenerator(tiny(), RolloutConfig(), (1,), letters_tokenizer().decode, runtime())
    made.update()
    return made


def collect(rows, rewards, weights=None, *, lengths=None, samples=1):
    dataset = prompts(rows) if isinstance(rows[0], list) else rows
    lengths = lengths or Lengths(max_prompt_tokens=99, max_response_tokens=6)
    source = TokenDatasetSource(dataset, letters_tokenizer(), lengths, rewards, weights or [1.0] * len(rewards))
    starts = [Start(index, sample, 0) for index in range(source.num_prompts) for sample in range(samples)]
    return source.collect(generator(), starts, seed=0, iteration=0)


def test_the_score_is_on_the_last_token_and_nowhere_else():
    for episode in collect(ROWS, [count]):
        assert episode.token_ids[: len(ROWS[episode.index])] == ROWS[episode.index]
        assert episode.response_mask == [False] * len(ROWS[episode.index]) + [True] * episode.response_length
        assert episode.rewards[-1] == episode.score == episode.response_length
        assert not any(episode.rewards[:-1])
        assert (episode.terminated, episode.truncated) == (True, False)
        assert all(logprob < 0 for logprob in episode.sampled_logprobs[len(ROWS[episode.index]) :])


def reward_model():
    model = LlamaForSequenceClassification(tiny(seed=4, num_labels=1).config).eval()
    torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(0))
    return model


def test_modules_and_functions_are_weighted_and_kept_apart():
    model = reward_model()
    for episode in collect(ROWS, [model, count], [2.0, -0.5]):
        with torch.no_grad():
            expected = float(model(torch.tensor([episode.token_ids])).logits)
        raw = episode.components
        assert raw == {"LlamaForSequenceClassification": pytest.approx(expected, abs=1e-5),
                       "count": episode.response_length}  # fmt: skip
        assert episode.score == pytest.approx(2 * expected - 0.5 * episode.response_length, abs=1e-5)


def test_a_reward_model_is_read_at_the_last_real_token_in_any_company():
    model = reward_model()
    rows = [[3], [4, 5, 6, 7, 3, 4], [0, 5, 0], [5, 1]]  # pad and EOS ids inside count as tokens
    together = score_tokens(model, rows)
    for row, score in zip(rows, together, strict=True):
        with torch.no_grad():
            hidden = model.model(input_ids=torch.tensor([row])).last_hidden_state[0, -1]
        assert score == pytest.approx(float(model.score(hidden).detach()), abs=1e-5)
        assert score_tokens(model, [row])[0] == pytest.approx(score, abs=1e-5)
    assert together.dtype == np.float64


def test_samples_of_a_prompt_differ():
    episodes = collect([[3, 4]], [count], samples=8)
    assert len({tuple(episode.token_ids) for episode in episodes}) > 3
    assert [episode.sample_index for episode in episodes] == list(range(8))


def test_a_response_that_nobody_scores_has_no_score():
    def odd(prompts, completions, **_):
        return [None if number % 2 else 1.0 for number in range(len(completions))]

    scores = [episode.score for episode in collect(ROWS, [odd])]
    assert (scores[0], scores[2]) == (1.0, 1.0)
    assert np.isnan(scores[1])


def test_reward_functions_see_the_rows_other_columns():
    def tagged(prompts, completions, tag, **_):
        return [10.0 * number for number in tag]

    rows = [{"input_ids": row, "tag": number} for number, row in enumerate(ROWS)]
    assert [episode.score for episode in collect(rows, [tagged])] == [0.0, 10.0, 20.0]


def test_rewards_of_one_name_are_kept_apart():
    raw = collect(ROWS, [reward_model(), lambda completions, **_: [1.0] * 3, lambda completions, **_: [2.0] * 3])[0]
    assert list(raw.components) == ["LlamaForSequenceClassification", "<lambda>", "<lambda>_2"]
    assert [raw.components[name] for name in ("<lambda>", "<lambda>_2")] == [1.0, 2.0]
    assert raw.score == pytest.approx(sum(raw.components.values()), abs=1e-9)


def test_where_a_function_does_not_apply_the_module_counts_alone():
    def odd(prompts, completions, **_):
        return [None if number % 2 else 1.0 for number in range(len(completions))]

    scores = [episode.score for episode in collect(ROWS, [reward_model(), odd])]
    alone = [episode.score for episode in collect(ROWS, [reward_model()])]
    assert scores == pytest.approx([alone[0] + 1, alone[1], alone[2] + 1], abs=1e-6)


def test_a_function_of_weight_zero_is_only_logged():
    episodes = collect(ROWS, [reward_model(), count], [1.0, 0.0])
    assert all(episode.components["count"] == episode.response_length > 0 for episode in episodes)
    assert all(episode.score == episode.components["LlamaForSequenceClassification"] for episode in episodes)


def test_a_module_reads_no_more_conversations_at_once_than_it_may():
    sizes, model = [], reward_model()
    model.model.register_forward_hook(lambda *arguments: sizes.append(len(arguments[2].last_hidden_state)))
    source = TokenDatasetSource(
        prompts(ROWS), letters_tokenizer(), Lengths(99, 6), [model], [1.0], batch_size=2
    )  # fmt: skip
    starts = [Start(n % 3, n // 3, 0) for n in range(5)]
    episodes = source.collect(generator(), starts, seed=0, iteration=0)
    assert sizes == [2, 2, 1]
    assert [e.score for e in episodes] == pytest.approx(score_tokens(model, [e.token_ids for e in episodes]), abs=1e-5)


def test_a_prompt_that_is_too_long_is_refused():
    with pytest.raises(DataError, match=r"prompt 1 has 5 tokens.*4"):
        collect(ROWS, [count], lengths=Lengths(max_prompt_tokens=4, max_response_tokens=6))


def test_an_empty_prompt_is_refused():
    with pytest.raises(DataError, match="prompt 1"):
        collect([{"input_ids": [3]}, {"input_ids": [0, 0]}], [count])


def test_oracle_28_a_data_set_without_rows_is_refused(tmp_path):
    with pytest.raises(DataError):
        make_trainer(tmp_path, tiny(), reward_model=count, train_dataset=[], total_episodes=8)
