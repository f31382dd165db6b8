"""TRL's own PPO trainer on tiny models, and spies on what it computes.

The tests beside this file come in pairs: one shows a defect in TRL's trainer, the other shows it gone in this
project's. TRL's trainer runs its real `train()`; where a test must know the responses, only sampling is replaced.
"""

import importlib.metadata
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from ppo_helpers import EOS, letters_tokenizer, prompts, record_steps, tiny
from torch import Tensor, nn
from transformers import LlamaForSequenceClassification, TrainerCallback

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # before the import: read while TRL is imported
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
try:
    from trl.experimental.ppo import PPOConfig as TrlPPOConfig
    from trl.experimental.ppo import PPOTrainer as TrlPPOTrainer
except ImportError:  # removed after 1.12
    TrlPPOConfig = TrlPPOTrainer = None
huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True  # the variable comes too late if it was imported earlier

MODULE: Any = sys.modules.get("trl.experimental.ppo.ppo_trainer")
VERSION = importlib.metadata.version("trl")
A, B, C = 3, 4, 5  # letters of the tokenizer
ROWS = [[A], [B, C, 6], [C, C], [6, 7, A, A], [7], [A, B], [B, B, B], [6]]


def in_trl(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that shows a defect of TRL's trainer, and let that trainer warn about names that it uses."""
    marks = [
        pytest.mark.trl,
        pytest.mark.skipif(
            MODULE is None or not VERSION.startswith("1.12."),
            reason=f"describes TRL 1.12; here is {VERSION}: `make trl-defects` runs it",
        ),
        # TRL 1.12 uses transformers' old name for recomputing activations.
        pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*is deprecated:FutureWarning"),
        # It takes the variance of the ratios of all microbatches, also where there is one.
        pytest.mark.filterwarnings("ignore:.*degrees of freedom is <= 0:UserWarning"),
    ]
    for mark in marks:
        test = mark(test)
    return test


class Locals(TrainerCallback):
    """Keeps what `train()` of TRL's trainer has in its local variables at the end of each iteration."""

    def __init__(self) -> None:
        self.iterations: list[dict[str, Any]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        frame: Any = sys._getframe()
        while frame.f_code is not TrlPPOTrainer.train.__code__:
            frame = frame.f_back
        kept = {name: value.detach().clone() for name, value in frame.f_locals.items() if isinstance(value, Tensor)}
        self.iterations.append(kept)


class FixedReward(nn.Module):
    """A reward model in the form that TRL's trainer wants. Every response gets `score`; what was read is kept."""

    base_model_prefix = "model"

    def __init__(self, score: float = 1.0) -> None:
        super().__init__()
        self.value = score
        self.seen: list[list[int]] = []
        self.model = self.read
        self.score = nn.Identity()

    def read(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> SimpleNamespace:
        """Return hidden states (B, L, 1) that all say the same."""
        for row, mask in zip(input_ids, attention_mask, strict=True):
            self.seen.append(row[mask].tolist())
        return SimpleNamespace(hidden_states=[torch.full((*input_ids.shape, 1), self.value)])


def left_padding(tokenizer: Any) -> Any:
    """Let a tokenizer pad on the left, as TRL's documentation asks."""
    tokenizer.padding_side = "left"
    return tokenizer


def zero_critic(**options: Any) -> LlamaForSequenceClassification:
    """A critic that says 0 of every state, until it is trained."""
    critic = LlamaForSequenceClassification(tiny(layers=1, num_labels=1, **options).config)
    nn.init.zeros_(critic.score.weight)
    return critic


def stock_trainer(
    folder: Path | str, policy: Any = None, *, rows: Sequence[Sequence[int]] = ROWS, **options: Any
) -> Any:
    """TRL's trainer: batches of 8, one epoch, temperature 1, unless `options` say otherwise; `trainer.spy`: Locals."""
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "logging_steps": 10**6, "save_strategy": "no"}
    plain = {"bf16": False, "gradient_checkpointing": False, "num_sample_generations": 0, "temperature": 1.0}
    sizes = {"per_device_train_batch_size": 8, "num_ppo_epochs": 1, "response_length": 6, "total_episodes": 8}
    names = ("ref_model", "value_model", "reward_model", "processing_class", "peft_config")
    given = {name: options.pop(name) for name in names if name in options}
    spy = Locals()
    trainer = TrlPPOTrainer(
        args=TrlPPOConfig(output_dir=str(folder), **{**quiet, **plain, **sizes, **options}),
        processing_class=given.pop("processing_class", None) or left_padding(letters_tokenizer()),
        model=policy if policy is not None else tiny(),
        ref_model=given.pop("ref_model", None),
        reward_model=given.pop("reward_model", None) or FixedReward(),
        value_model=given.pop("value_model", None) or zero_critic(),
        train_dataset=prompts(rows),
        callbacks=[spy],
        **given,
    )
    trainer.spy = spy
    return trainer


def script(monkeypatch: pytest.MonkeyPatch, responses: dict[int, Sequence[int]], width: int, fill: int = EOS) -> None:
    """Let TRL's trainer "sample" these responses, found by the prompt's last token, and go on with `fill` to `width`.

    Log-probabilities are the policy's own, from a forward pass in place of decoding.
    """

    def batch_generation(model: Any, queries: Tensor, _: int, pad: int, config: Any) -> tuple[Tensor, Tensor]:
        said = [list(responses[int(row[row != pad][-1])]) for row in queries]
        both = torch.cat([queries, torch.tensor([ids + [fill] * (width - len(ids)) for ids in said])], 1)
        with torch.no_grad():
            logits = MODULE.forward(model, both, pad).logits[:, queries.shape[1] - 1 : -1]
        return both, logits / config.temperature

    monkeypatch.setattr(MODULE, "batch_generation", batch_generation)


def record_stock_steps(trainer: Any) -> list[dict[str, Tensor]]:
    """Return a list that gets the gradients, by name, of every optimizer step from now on."""
    named = SimpleNamespace(actor_critic=trainer.model, optimizer=trainer.optimizer)
    return record_steps(named)  # type: ignore[arg-type]
