"""The run's own reward model without a backbone of its own: an adapter and a head on the policy's frozen trunk.

The reward stage leaves both beside the merged model. Scores are those of the merged model; text goes in as before.
Between that stage and PPO; `scorer.py` decides when it is used.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoTokenizer
from transformers.modeling_outputs import SequenceClassifierOutput

from reward_models.normalise import Normalisation
from reward_models.scalar import ScalarRewardModel
from rlhf.errors import ModelError, StageError
from rlhf.launch.runtime import Runtime
from rlhf.models.shared_trunk import REWARD, Adapters, load_adapter

ADAPTER = "adapter"  # its folder, in that of the reward model


def load_shared_reward_model(folder: Path, policy: Any, runtime: Runtime) -> ScalarRewardModel:
    """Load a reward model onto the trunk of a policy.

    Args:
        folder: What the reward stage left.
        policy: A LoRA policy on the trunk that the reward model was trained on; gets a frozen adapter, `reward`.
        runtime: In which precision the trunk runs.

    Raises:
        StageError: The reward stage left no adapter.
        ModelError: The policy has no adapter itself, or another trunk.
    """
    if not isinstance(policy, PeftModel):
        raise ModelError(
            "the policy is trained in full, so its trunk moves: a reward model can share only the frozen trunk of a "
            "LoRA policy. Set model.lora, or ppo.rewards.reward_model.share_trunk to false"
        )
    if not (folder / ADAPTER).is_dir():
        raise StageError(
            f"{folder} has no reward model with an adapter ({ADAPTER}/): it was not trained by LoRA on the policy's "
            f"trunk, or by an older version. Remove {folder} and run `rlhf reward` again, or set "
            "ppo.rewards.reward_model.share_trunk to false"
        )
    rest = load_adapter(policy, REWARD, folder / ADAPTER, trainable=False)
    if len(rest) != 1:
        raise ModelError(f"{folder / ADAPTER}: besides the adapter one head is needed, it has {sorted(rest) or 'none'}")
    [head] = rest.values()  # (1, d)
    model: Any = TrunkClassifier(policy, head, runtime)
    return ScalarRewardModel(model, AutoTokenizer.from_pretrained(folder), Normalisation.load(folder))


class TrunkClassifier:
    """Answers like a sequence classifier of one label, as far as `ScalarRewardModel` asks.

    It is no module, so that the trunk is nobody's twice.

    Args:
        policy: Whose trunk is run, with the adapter `reward`.
        head: (1, d) weights of the score.
        runtime: In which precision the trunk runs; the score is float32 at least.
    """

    def __init__(self, policy: PeftModel, head: Tensor, runtime: Runtime) -> None:
        self._model: Any = policy.get_base_model()
        self._adapters = Adapters(policy)
        self._head = head
        self._runtime = runtime
        self.config = copy.deepcopy(self._model.config)  # the policy's own is not to be changed
        self.config.num_labels = 1

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> SequenceClassifierOutput:
        """Score B rows, padded on the right.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T), 1 where there is a token; tells where the last one is. Attention is causal and
                needs none.

        Returns:
            `logits` (B, 1).
        """
        with self._adapters.using(REWARD), self._runtime.autocast():
            hidden = self._model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state  # (B, T, d)
        rows, last = torch.arange(len(input_ids), device=hidden.device), attention_mask.sum(1) - 1
        read = hidden[rows, last]  # (B, d)
        dtype = torch.promote_types(read.dtype, self._head.dtype)
        return SequenceClassifierOutput(logits=read.to(dtype) @ self._head.to(read.device, dtype).T)

    def eval(self) -> "TrunkClassifier":
        """Do nothing: the trunk has no dropout, and its mode is the trainer's matter."""
        return self

    def get_input_embeddings(self) -> nn.Module:
        """Return the trunk's."""
        embeddings: nn.Module = self._model.get_input_embeddings()
        return embeddings

    @property
    def device(self) -> torch.device:
        """Where the trunk is now."""
        where: torch.device = self._model.device
        return where
