"""Several adapters on one trunk: switched without side effects, named by their trunk, saved as peft expects them."""

import json

import peft
import pytest
import torch
from ppo_helpers import tiny, with_lora
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rlhf.errors import ModelError
from rlhf.models.shared_trunk import Adapters, add_twin, fingerprint, load_adapter, save_adapter

IDS = torch.tensor([[3, 4, 5, 6, 7]])
TARGETS = {
    "llama": {"target_modules": ["q_proj", "embed_tokens"]},
    "gpt2": {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True},
    "opt": {"target_modules": ["q_proj", "fc1"], "use_rslora": True},
}

# peft asks transformers for a property under its old name.
OLD_NAME = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


def model_with(*names, family="llama", **options):
    model = with_lora(tiny(family, **options).eval(), **TARGETS[family])
    for name in names:
        add_twin(model, name, seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("family", TARGETS)
def test_switching_is_what_peft_does_without_its_side_effects(family):
    model = model_with("critic", family=family)
    expected = {}
    for name in ("critic", "default"):  # peft's own way, which takes gradients away
        model.set_adapter(name)
        expected[name] = logits(model)
    model.set_requires_grad(["default", "critic"])
    adapters, before = Adapters(model), trainable(model)
    with adapters.using():
        assert torch.equal(logits(model), logits(tiny(family).eval()))
        with adapters.using("critic"):
            assert torch.equal(logits(model), expected["critic"])
        assert torch.equal(logits(model), logits(tiny(family).eval()))
    assert torch.equal(logits(model), expected["default"])
    assert not torch.equal(expected["default"], expected["critic"])
    assert trainable(model) == before
    assert any(".critic" in name for name in before)
    assert any(".default" in name for name in before)


def test_an_error_inside_switches_back():
    model = model_with("critic")
    adapters, before = Adapters(model), logits(model)
    with pytest.raises(ZeroDivisionError), adapters.using("critic"):
        _ = 1 / 0
    assert torch.equal(logits(model), before)


def test_what_is_recomputed_later_runs_with_the_adapters_of_its_time():
    model = model_with("critic")
    adapters = Adapters(model)
    with adapters.using("critic"):
        expected = logits(model)
        now, later = adapters.checkpoint_contexts()
        with now:
            assert torch.equal(logits(model), expected)
    assert not torch.equal(logits(model), expected)
    with later:
        assert torch.equal(logits(model), expected)


def test_a_twin_changes_nothing_and_spends_no_randomness():
    model, other = with_lora(tiny(), target_modules="all-linear"), with_lora(tiny(), target_modules="all-linear")
    own, state = trainable(model), torch.get_rng_state()
    add_twin(model, "critic", seed=3)
    add_twin(other, "critic", seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    named, others = dict(model.named_parameters()), dict(other.named_parameters())
    for name in own:
        twin = name.replace(".default.", ".critic.")
        assert named[twin].shape == named[name].shape
        assert torch.equal(named[twin], others[twin])
        assert not torch.equal(named[twin], named[name]) or ".lora_B." in name
    assert trainable(model) == own | {name.replace(".default.", ".critic.") for name in own}
    with Adapters(model).using("critic"):
        assert torch.equal(logits(model), logits(tiny()))


@OLD_NAME
def test_prompt_tuning_is_refused():
    model = peft.get_peft_model(tiny(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ModelError, match="are not in the model's layers: use LoRA"):
        Adapters(model)


def test_a_fingerprint_names_the_frozen_weights_whatever_is_on_them():
    name = fingerprint(tiny())
    assert fingerprint(tiny()) == name
    assert fingerprint(model_with("critic", "reward")) == name
    rounded = model_with()
    for parameter in rounded.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    assert fingerprint(rounded) == name
    assert fingerprint(tiny(seed=1)) != name
    assert fingerprint(tiny(layers=1)) != name
    moved = tiny()
    with torch.no_grad():
        moved.model.layers[1].mlp.up_proj.weight.mul_(1.1)
    assert fingerprint(moved) != name
    head = tiny()
    with torch.no_grad():
        head.lm_head.weight.mul_(1.1)
    assert fingerprint(head) == name  # a head is no part of the trunk


def saved(folder, model, adapter="default"):
    save_adapter(folder, model.peft_config[adapter], dict(model.named_parameters()), adapter, fingerprint(model))
    return folder


@pytest.mark.parametrize("family", TARGETS)
def test_an_adapter_is_saved_and_loaded_beside_another(tmp_path, family):
    model = model_with("critic", family=family)
    with Adapters(model).using("critic"):
        expected = logits(model)
    saved(tmp_path / "adapter", model, "critic")
    target = model_with(family=family)
    own, before = trainable(target), logits(target)
    assert load_adapter(target, "second", tmp_path / "adapter", trainable=False) == {}
    assert trainable(target) == own
    assert torch.equal(logits(target), before)
    with Adapters(target).using("second"):
        assert torch.equal(logits(target), expected)
    load_adapter(target, "third", tmp_path / "adapter", trainable=True)
    assert trainable(target) == own | {name.replace(".default", ".third") for name in own}


def test_adapters_beside_the_first_have_no_dropout(tmp_path):
    model = with_lora(tiny(), **TARGETS["llama"], lora_dropout=0.5)
    add_twin(model, "critic")
    saved(tmp_path, model)
    load_adapter(model, "reward", tmp_path, trainable=False)
    rates = {
        name.rpartition(".")[2]: getattr(module, "p", 0.0)
        for name, module in model.named_modules()
        if ".lora_dropout." in name
    }
    assert rates == {"default": 0.5, "critic": 0.0, "reward": 0.0}


@OLD_NAME
def test_peft_itself_loads_what_was_saved(tmp_path):
    model = model_with("critic")
    with Adapters(model).using("critic"):
        expected = logits(model)
    tiny().save_pretrained(tmp_path / "trunk")
    saved(tmp_path / "adapter", model, "critic")
    plain = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "trunk"), tmp_path / "adapter"
    )
    torch.testing.assert_close(logits(plain.eval()), expected, atol=1e-6, rtol=0)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["inference_mode"] is True
    assert model.peft_config["critic"].inference_mode is False


def test_an_adapter_that_cannot_be_loaded_says_why(tmp_path):
    with pytest.raises(ModelError, match="no adapter can be loaded from it"):
        load_adapter(model_with(), "x", tmp_path / "nowhere", trainable=False)
    folder = saved(tmp_path / "adapter", model_with())
    for other in (model_with(seed=1), model_with(layers=1)):
        with pytest.raises(
            ModelError, match=r"another trunk than that of the policy.* Give the model that its training"
        ):
            load_adapter(other, "x", folder, trainable=False)
    file = folder / "adapter_model.safetensors"
    weights = load_file(file)
    save_file(weights, file)
    with pytest.raises(ModelError, match="another trunk"):  # nobody knows of which one
        load_adapter(model_with(), "x", folder, trainable=False)
    weights.pop(next(iter(weights)))
    save_file(weights, file, metadata={"format": "pt", "trunk": fingerprint(model_with())})
    with pytest.raises(ModelError, match="its weights do not fit its settings"):
        load_adapter(model_with(), "x", folder, trainable=False)
