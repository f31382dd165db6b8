"""What is stored in bfloat16 gives exactly what autocast would have computed with it."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_helpers import make_ppo, prompts, tiny, with_lora
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from rlhf.models.precision import round_frozen_matrices
from rlhf.packing.packed import PackedRows
from rlhf.policies import head

LLAMA: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "pad_token_id": 0,
}  # fmt: skip


def llama() -> Any:
    return LlamaForCausalLM(LlamaConfig(**LLAMA))


def gpt2() -> Any:
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2))


def classifier() -> Any:
    return LlamaForSequenceClassification(LlamaConfig(**LLAMA, num_labels=1))


@pytest.mark.parametrize(
    ("make", "options"),
    [(llama, None), (gpt2, None), (classifier, None), (llama, {}), (gpt2, {"fan_in_fan_out": True})],
)
def test_hidden_states_are_the_same_to_the_last_digit(make: Any, options: dict[str, bool] | None) -> None:
    torch.manual_seed(0)
    model: Any = make().requires_grad_(False).eval()
    if options is not None:
        model = with_lora(model, target_modules="all-linear", init_lora_weights=False, **options).eval()
    rows = PackedRows.from_rows([[1, 2, 3, 4], [5, 6]])
    found = []
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            found.append(head.hidden_states(model, rows, torch.arange(6)))
        round_frozen_matrices(model)
    assert torch.equal(*found)
    kept = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float32}
    matrices = {name for name, parameter in model.named_parameters() if "proj" in name or ".c_" in name}
    matrices = {name for name in matrices if "lora_" not in name and "bias" not in name}
    assert matrices
    assert kept == {name for name, _ in model.named_parameters()} - matrices


def test_what_is_trained_keeps_its_master() -> None:
    model = llama()
    model.model.layers[0].requires_grad_(False)
    round_frozen_matrices(model)
    stored = {parameter.dtype for name, parameter in model.named_parameters() if "layers.0." in name and "proj" in name}
    assert stored == {torch.bfloat16}
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters() if parameter.requires_grad)


def test_the_checkpoint_that_weights_came_from_leaves_memory(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    model = LlamaForCausalLM.from_pretrained(tmp_path).requires_grad_(False)
    maps = Path("/proc/self/maps")
    if not maps.is_file() or str(tmp_path) not in maps.read_text():
        pytest.skip("weights are not mapped into memory here")
    before = {name: parameter.clone() for name, parameter in model.named_parameters() if "embed" in name}
    round_frozen_matrices(model)
    gc.collect()
    assert str(tmp_path) not in maps.read_text()
    assert all(torch.equal(model.get_parameter(name), weight) for name, weight in before.items())


def test_the_loop_stores_the_reference_as_it_computes_with_it() -> None:
    reference = tiny()
    trainer = make_ppo(tiny(), bf16=True, reference=reference, reward=len, dataset=prompts([[3, 4]]))
    assert reference.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert all(parameter.dtype == torch.float32 for parameter in trainer.actor_critic.policy.parameters())


def test_a_reward_model_whose_trunk_is_a_function_is_left_as_it_is() -> None:
    class Words(torch.nn.Module):
        base_model_prefix = "model"

        def __init__(self) -> None:
            super().__init__()
            self.score = torch.nn.Linear(1, 1).requires_grad_(False)

        def model(self, input_ids: torch.Tensor) -> torch.Tensor:
            return input_ids

    model = Words()
    round_frozen_matrices(model)
    assert model.score.weight.dtype == torch.float32
