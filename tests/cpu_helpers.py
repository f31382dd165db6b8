"""Models, weights and random numbers for the tests of compiled code."""

from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from rlhf.cpu import output_layer
from rlhf.launch.runtime import Runtime
from rlhf.models.adapters import wrap
from rlhf.packing.packed import PackedRows

COMPILED = Runtime(torch.device("cpu"), compile_kernels=True)
PLAIN = Runtime(torch.device("cpu"), compile_kernels=False)
SIZES = {
    "vocab_size": 40, "hidden_size": 96, "intermediate_size": 112, "num_hidden_layers": 2, "num_attention_heads": 3,
    "num_key_value_heads": 1, "max_position_embeddings": 128, "initializer_range": 0.1,
}  # fmt: skip
LORA = {"r": 3, "lora_alpha": 6, "target_modules": "all-linear"}

needs_bfloat16 = pytest.mark.skipif(
    not output_layer.multiplies_bfloat16(), reason="this processor does not multiply bfloat16"
)
BFLOAT16 = pytest.param(torch.bfloat16, marks=needs_bfloat16)


def numbers(*shape: int, seed: int = 0, spread: float = 1.0) -> Tensor:
    """Random numbers, the same for the same shape and seed."""
    return spread * torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape) + 1000 * seed))


def shaken(model: Any) -> Any:
    """Move every weight, so that no norm is 1, no bias and no adapter 0."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def llama(**options: Any) -> Any:
    torch.manual_seed(0)
    return shaken(LlamaForCausalLM(LlamaConfig(**{**SIZES, **options})))


def qwen2() -> Any:
    torch.manual_seed(0)
    return shaken(Qwen2ForCausalLM(Qwen2Config(**SIZES)))


def adapted(*, moved: bool = True, base: Any = None, **options: Any) -> Any:
    """A Llama with adapters, which do nothing yet unless they are moved."""
    torch.manual_seed(0)
    model = wrap(llama() if base is None else base, LoraConfig(**{**LORA, **options})).eval()
    for name, parameter in model.named_parameters():
        if moved and "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def packed(lengths: list[int], shared: int = 0) -> PackedRows:
    """Rows of random tokens, of which the first ones are the same."""
    ids = torch.randint(2, 40, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(0))
    ids[:, :shared] = 1
    return PackedRows.from_padded(ids, torch.tensor(lengths))


def near(got: Tensor, expected: Tensor, tolerance: float) -> None:
    """Assert that the error is small beside what is expected."""
    assert got.isfinite().all()
    assert (got.double() - expected.double()).norm() <= tolerance * expected.double().norm()
