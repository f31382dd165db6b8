"""Sampler, reference pass and update must say the same about the same tokens, in every family and layout."""

import pytest
import torch
from ppo_helpers import advantaged, exact, letters_tokenizer, make_ppo, prompts, random_episodes, runtime, tiny
from transformers import LlamaForSequenceClassification, MistralConfig, MistralForCausalLM

from rlhf.config.ppo import RolloutConfig
from rlhf.episodes.lengths import Lengths
from rlhf.episodes.plan import Start
from rlhf.errors import ModelError
from rlhf.generation.torch_generator import TorchGenerator
from rlhf.models.dropout import disable_dropout
from rlhf.packing.microbatch import microbatches
from rlhf.policies.actor_critic import ActorCritic
from rlhf.ppo.batch import collate
from rlhf.ppo.metrics import sampler_mismatch
from rlhf.trl.token_dataset import TokenDatasetSource

FAMILIES = ["llama", "gpt2", "opt"]
ROWS = [[3], [4, 5, 6, 7, 3, 4], [5, 5], [6, 7, 3, 3, 4], [7], [3, 4, 5], [4], [6, 6, 6, 6]]


def count_letters(prompts, completions, completion_ids, **_):
    return [float(len(ids)) for ids in completion_ids]


def sampling_trainer(folder, policy, **options):
    defaults = {"max_response_tokens": 12, "temperature": 0.7, "epochs": 1, "batch_size": 3}
    return make_ppo(policy, reward=count_letters, dataset=prompts(ROWS), **{**defaults, **options})


def pollute(policy):
    """What a Hub model's generation config may hold; none of it may act."""
    policy.generation_config.update(repetition_penalty=1.7, top_k=2, top_p=0.5, temperature=0.1, do_sample=False)
    policy.generation_config.no_repeat_ngram_size = 1
    return policy


def noisy(family):
    """A model whose dropout, as modules and as numbers in its blocks, has to be found and switched off."""
    options = {
        "llama": {"attention_dropout": 0.5},
        "gpt2": {"attn_pdrop": 0.5, "embd_pdrop": 0.5, "resid_pdrop": 0.5},
        "opt": {"dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.5},
    }
    return tiny(family, **options[family])


@pytest.mark.parametrize("family", FAMILIES)
def test_oracle_08_and_09_the_first_minibatch_has_ratio_1_to_the_bit(tmp_path, family):
    trainer = sampling_trainer(tmp_path, pollute(noisy(family)))
    batch = advantaged(trainer)
    assert batch.mask.sum() > 16
    means = trainer.update(batch, 0).means()
    assert (means["ratio"], means["ratio_max"]) == (1.0, 1.0)
    assert (means["approx_kl"], means["clip_fraction"]) == (0.0, 0.0)
    assert means["gradient_norm"] > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_oracle_08_and_09_the_sampler_agrees_with_the_trainer(tmp_path, family):
    trainer = sampling_trainer(tmp_path, pollute(noisy(family)))
    batch = advantaged(trainer)
    gap = (batch.logprobs - batch.sampled_logprobs)[batch.mask].abs().max()
    assert 0 < batch.sampled_logprobs[batch.mask].abs().min()
    assert gap <= 1e-5
    assert sampler_mismatch(batch)["sampler_logprob_gap"] == pytest.approx(float(gap))
    torch.testing.assert_close(batch.logprobs, batch.ref_logprobs, atol=0, rtol=0)


def test_oracle_09_a_polluted_generation_config_changes_no_text(tmp_path):
    texts = [
        [e.token_ids for e in sampling_trainer(tmp_path, policy).rollout(0)] for policy in (tiny(), pollute(tiny()))
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_oracle_08_eager_attention_samples_from_the_policy_too(tmp_path, family):
    trainer = sampling_trainer(tmp_path, tiny(family, attn_implementation="eager"))
    batch = advantaged(trainer)
    assert (batch.logprobs - batch.sampled_logprobs)[batch.mask].abs().max() <= 1e-5


def test_oracle_08_a_sliding_window_that_rows_outgrow_is_refused(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "vocab_size": 8}
    torch.manual_seed(0)
    for window in (18, 17):  # prompts take up to 6 tokens, responses up to 12
        config = MistralConfig(num_key_value_heads=2, sliding_window=window, initializer_range=0.3, **sizes, **special)
        trainer = sampling_trainer(tmp_path, MistralForCausalLM(config))
        if window == 18:
            batch = advantaged(trainer)
            assert (batch.logprobs - batch.sampled_logprobs)[batch.mask].abs().max() <= 1e-5
        else:
            with pytest.raises(ModelError, match=r"may take 18 tokens.* slides over 17: shorten them"):
                trainer.rollout(0)


def evaluate(model, episodes, budget, temperature=0.7):
    """Log-probabilities and values of each episode, as lists of tensors."""
    batch = collate(episodes, next(model.parameters()).dtype, torch.device("cpu"))
    found = {}
    with torch.no_grad():
        for part in microbatches(batch, range(len(batch)), budget):
            outputs = model(part, temperature)
            sizes = batch.mask[part.rows].sum(1).tolist()
            finals = outputs.final_values
            rows = zip(outputs.logprobs.split(sizes), outputs.values.split(sizes), finals, strict=True)
            found |= dict(zip(part.rows.tolist(), rows, strict=True))
    return [found[row] for row in range(len(episodes))]


def actor_critic(family, precision):
    policy, trunk = tiny(family), tiny(layers=1, seed=1, num_labels=1)
    critic = LlamaForSequenceClassification(trunk.config)
    torch.nn.init.normal_(critic.score.weight)
    for module in (policy, critic):
        disable_dropout(module)
    if precision == torch.float64:
        policy, critic = exact(policy), exact(critic)
    return ActorCritic(policy, critic, runtime()).eval()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_oracle_10_width_and_company_do_not_change_logprobs_or_values(family, precision, tolerance):
    model, episodes = actor_critic(family, precision), random_episodes(9)
    alone = [evaluate(model, [episode], 1)[0] for episode in episodes]
    for chosen, budget in ((episodes, 10**6), (episodes[::-1], 30), (episodes[3:] + episodes[:3], 14)):
        for given, got in zip(chosen, evaluate(model, chosen, budget), strict=True):
            for number, wanted in zip(got, alone[episodes.index(given)], strict=True):
                torch.testing.assert_close(number, wanted, atol=tolerance, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_oracle_10_logprobs_are_those_of_the_plain_model(family):
    """Against the model's own forward pass, one conversation at a time, without the engine's layout."""
    model, episodes = actor_critic(family, torch.float64), random_episodes(6)
    for episode, (logprobs, values, final) in zip(episodes, evaluate(model, episodes, 40), strict=True):
        ids, own = torch.tensor(episode.token_ids), torch.tensor(episode.response_mask)
        with torch.no_grad():
            table = (model.policy(ids[None]).logits[0] / 0.7).log_softmax(-1)
            critic = model.value_model
            everywhere = critic.score(critic.model(input_ids=ids[None]).last_hidden_state)[0, :, 0]
        where = own.nonzero()[:, 0]
        torch.testing.assert_close(logprobs, table[where - 1, ids[where]], atol=1e-12, rtol=0)
        torch.testing.assert_close(values, everywhere[where - 1], atol=1e-12, rtol=0)
        torch.testing.assert_close(final, everywhere[-1], atol=1e-12, rtol=0)


@pytest.mark.parametrize("pad", ["<p>", "<e>"])
def test_oracle_10_padding_side_of_the_data_set_changes_nothing(pad):
    tokenizer = letters_tokenizer(pad=pad)
    policy = tiny().eval()
    width = max(map(len, ROWS))
    filler = tokenizer.pad_token_id
    sides = {
        "none": [{"input_ids": row} for row in ROWS],
        "left": [{"input_ids": [filler] * (width - len(row)) + row} for row in ROWS],
        "right": [{"input_ids": row + [filler] * (width - len(row))} for row in ROWS],
        "left, masked": [
            {"input_ids": [5] * (width - len(row)) + row, "attention_mask": [0] * (width - len(row)) + [1] * len(row)}
            for row in ROWS
        ],
    }
    starts = [Start(index, 0, 0) for index in range(len(ROWS))]
    results = {}
    for side, rows in sides.items():
        source = TokenDatasetSource(rows, tokenizer, Lengths(99, 8), [count_letters], [1.0])
        generator = TorchGenerator(policy, RolloutConfig(), (1,), tokenizer.decode, runtime())
        generator.update()
        episodes = source.collect(generator, starts, seed=0, iteration=0)
        results[side] = [(e.token_ids, e.response_mask, e.score) for e in episodes]
        assert [e.token_ids[: len(row)] for e, row in zip(episodes, ROWS, strict=True)] == ROWS
    assert all(result == results["none"] for result in results.values())


def test_oracle_29_importance_weights(tmp_path):
    """The trainer's probability over the sampler's: 1, or the mass that truncated sampling has kept."""
    trainer = sampling_trainer(tmp_path, exact(tiny()))
    batch = advantaged(trainer)
    assert sampler_mismatch(batch)["importance_weight"] == pytest.approx(1, abs=1e-6)
    truncated = sampling_trainer(tmp_path, exact(tiny()), top_p=0.8)
    episodes = truncated.rollout(0)
    batch = advantaged(truncated, episodes)
    kept = []
    for episode in episodes:
        with torch.no_grad():
            logits = truncated.actor_critic.policy(torch.tensor([episode.token_ids])).logits[0] / 0.7
        for position, own in enumerate(episode.response_mask):
            if own:
                ordered = logits[position - 1].softmax(-1).sort(descending=True).values
                count = int((ordered.cumsum(0) < 0.8).sum()) + 1  # the fewest tokens that reach the mass
                kept.append(float(ordered[:count].sum()))
    ratio = (batch.logprobs - batch.sampled_logprobs)[batch.mask].exp()
    torch.testing.assert_close(ratio, torch.tensor(kept, dtype=torch.float64), atol=1e-6, rtol=0)
    assert sampler_mismatch(batch)["importance_weight"] == pytest.approx(sum(kept) / len(kept), abs=1e-6)
    assert min(kept) < 0.95
