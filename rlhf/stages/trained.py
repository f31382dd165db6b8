"""What a training leaves, and its way into a folder: the weights of one process, whatever they were spread over.

Every stage that trains ends here; how it trained is not this module's matter.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rlhf.launch.processes import barrier
from rlhf.launch.rank import is_main_process
from rlhf.models.adapters import merge_and_save

LOSS = "eval_loss"  # transformers' name of the validation loss


@dataclass
class Trained:
    """What a training leaves.

    Attributes:
        weights: The trained parameters with the lowest validation loss (the last ones if nothing validates), by name
            and on the CPU; empty on all processes but the first.
        metrics: The validation that goes with them, under transformers' names; empty if nothing validates.
        steps: Optimizer steps that were taken.
        best_step: The step that the weights are from.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    best_step: int = 0


def save(trained: Trained, rebuild: Callable[[], nn.Module], tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a folder that plain `from_pretrained` loads, adapters merged; every process must call this.

    Args:
        trained: What the training left.
        rebuild: Makes the model as it was before training; the one that was trained may be spread over processes.
        tokenizer: Saved beside it.
        folder: Where to; it appears whole or not at all.
    """
    if is_main_process():
        model = rebuild()
        unknown = model.load_state_dict(trained.weights, strict=False).unexpected_keys
        assert not unknown, f"trained parameters that the model does not have: {unknown}"
        merge_and_save(model, tokenizer, folder)
    barrier()
