"""The weights that are sampled from: they must answer as the policy does now, whatever is beside or around them."""

from contextlib import nullcontext

import pytest
import torch
from ppo_helpers import runtime, tiny, weights, with_lora

from rlhf.config.ppo import RolloutConfig
from rlhf.errors import ModelError
from rlhf.generation.generator import Request
from rlhf.generation.rollout_policy import RolloutPolicy
from rlhf.generation.sampler import Sampler

IDS = torch.tensor([[3, 4, 5, 6, 7, 3]])
LORA = {
    "llama": {"target_modules": "all-linear"},
    "llama, head and embedding": {"target_modules": ["q_proj", "lm_head", "embed_tokens"]},
    "llama, tied": {"target_modules": ["q_proj", "down_proj"]},
    "gpt2": {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True},
    "gpt2, biases": {"target_modules": ["c_attn"], "fan_in_fan_out": True, "bias": "all"},
    "opt": {"target_modules": ["q_proj", "fc1"], "use_rslora": True},
}


def base(name):
    family = name.partition(",")[0]
    options = {"tie_word_embeddings": True} if "tied" in name else {}
    return tiny(family, **options).eval()


def adapted(name):
    return with_lora(base(name), **LORA[name]).eval()


def stir(model, seed=0):
    """Stand for an update: move every trainable weight."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def sample(model, requests):
    return Sampler(model, RolloutConfig(), (1,), runtime=runtime())(requests)


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("name", LORA)
@pytest.mark.parametrize("trained_before", [False, True])
def test_the_merged_copy_answers_as_the_adapted_policy(name, trained_before):
    policy = adapted(name)
    if trained_before:
        stir(policy, seed=7)
    rollout = RolloutPolicy(policy, runtime())
    for round_ in range(3):
        expected = logits(policy)
        torch.testing.assert_close(logits(rollout.refresh()), expected, atol=2e-5, rtol=0)
        stir(policy, seed=round_)
        assert (logits(policy) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("tied", [False, True])
def test_the_output_layer_is_the_policys_own(tied, monkeypatch):
    policy = tiny("llama", tie_word_embeddings=tied).eval()
    decoder = RolloutPolicy(policy, runtime(bf16=True)).refresh()
    assert decoder.lm_head.weight is policy.lm_head.weight
    assert decoder.lm_head.weight.dtype == torch.float32
    assert decoder.model.embed_tokens.weight.dtype == torch.bfloat16
    policy.model.norm.weight.ds_id = 0  # as ZeRO-3 marks what it has spread
    monkeypatch.setattr("rlhf.generation.rollout_policy.gathered_parameters", lambda _: nullcontext())
    apart = RolloutPolicy(policy, runtime(bf16=True)).refresh()
    assert apart.lm_head.weight is not policy.lm_head.weight
    torch.testing.assert_close(apart.lm_head.weight.data, policy.lm_head.weight.data, rtol=0, atol=0)


def test_only_what_is_trained_is_copied_again():
    policy = adapted("llama")
    rollout = RolloutPolicy(policy, runtime())
    copy = rollout.refresh()
    before = weights(copy)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.fill_(torch.nan)
    assert rollout.refresh() is copy
    now = weights(copy)
    renewed = {name for name in now if not now[name].isnan().any()}
    assert renewed == {name for name in now if name.endswith("_proj.weight")}
    assert all(torch.equal(now[name], before[name]) for name in renewed)


@pytest.mark.parametrize(("name", "bf16"), [("llama", True), ("llama, tied", True), ("llama", False), ("opt", True)])
@pytest.mark.parametrize("lora", [False, True])
def test_what_is_written_anew_takes_no_memory_between_rollouts(name, bf16, lora):
    policy = adapted(name) if lora else base(name)
    before = weights(policy)
    rollout = RolloutPolicy(policy, runtime(bf16=bf16))
    rollout.release()
    expected = weights(rollout.refresh())
    rollout.release()
    if rollout._copy is not None:
        left = {key for key, weight in weights(rollout._copy).items() if weight.numel()}
        targets = {"llama": ["_proj"]}.get(name, LORA[name]["target_modules"])
        trained = {key for key in expected if not lora or any(f"{target}.weight" in key for target in targets)}
        assert left == set(expected) - trained | {"lm_head.weight"}
    assert all(torch.equal(weight, before[key]) for key, weight in weights(policy).items())
    renewed = weights(rollout.refresh())
    assert renewed.keys() == expected.keys()
    assert all(torch.equal(weight, expected[key]) for key, weight in renewed.items())


def test_a_plain_policy_is_not_copied():
    policy = base("llama")
    assert RolloutPolicy(policy, runtime()).refresh() is policy


def test_a_copy_is_made_without_spending_randomness_and_leaves_the_policy_alone():
    policy = adapted("gpt2")
    stir(policy)
    before, state = weights(policy), torch.get_rng_state()
    copy = RolloutPolicy(policy, runtime()).refresh()
    assert torch.equal(torch.get_rng_state(), state)
    assert not copy.training
    assert not any(parameter.requires_grad for parameter in copy.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in weights(policy).items())


def test_bf16_rounds_the_trunk_and_keeps_output_layer_and_buffers():
    policy = base("llama, tied")
    rollout = RolloutPolicy(policy, runtime(bf16=True))
    copy = rollout.refresh()
    own = weights(policy)
    for name, weight in weights(copy).items():
        expected = own.get(name, own["model.embed_tokens.weight"])
        assert weight.dtype == (torch.float32 if name == "lm_head.weight" else torch.bfloat16)
        assert torch.equal(weight, expected.to(weight.dtype))
    for name, buffer in copy.named_buffers():
        assert torch.equal(buffer, policy.get_buffer(name)), name
    far = [model.model.rotary_emb(torch.zeros(1), torch.tensor([[1000]]))[0] for model in (policy, copy)]
    torch.testing.assert_close(*far, atol=1e-6, rtol=0)
    stir(policy)
    rollout.refresh()
    assert torch.equal(copy.model.norm.weight, policy.model.norm.weight.bfloat16())


def test_bf16_sums_matrix_and_adapter_before_it_rounds():
    policy = adapted("llama")
    stir(policy)
    copy = RolloutPolicy(policy, runtime(bf16=True)).refresh()
    layer = policy.base_model.model.model.layers[1].self_attn.q_proj
    delta = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    expected = (layer.base_layer.weight + delta).bfloat16()
    merged = copy.model.layers[1].self_attn.q_proj.weight
    assert (merged == expected).float().mean() > 0.99  # a last bit may differ where a sum lies between two numbers
    torch.testing.assert_close(merged.float(), expected.float(), atol=0, rtol=0.01)


def test_sampling_with_the_copy_is_sampling_from_the_adapted_policy():
    policy = adapted("llama")
    stir(policy)
    requests = [Request([3, 4, 5], key, 10) for key in range(8)]
    copy = RolloutPolicy(policy, runtime()).refresh()
    merged, direct = (sample(model, requests) for model in (copy, policy))
    assert [result.token_ids for result in merged] == [result.token_ids for result in direct]
    plain = sample(base("llama"), requests)
    assert [result.token_ids for result in plain] != [result.token_ids for result in direct]


@pytest.mark.parametrize("options", [{"modules_to_save": ["lm_head"]}, {"use_dora": True}])
def test_adapters_that_cannot_be_merged_are_refused(options):
    policy = with_lora(base("llama"), target_modules=["q_proj"], **options)
    with pytest.raises(ModelError, match="use plain LoRA, or train all weights"):
        RolloutPolicy(policy, runtime())
