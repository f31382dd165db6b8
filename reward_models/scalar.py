"""A trained reward model as a reward function: text in, one normalised score per response out.

It loads a standard sequence-classification folder with one label, its own tokenizer and `normalisation.json` (the
reward stage writes such a folder; others, without the last, work too). The model may differ from the policy in
architecture, size and vocabulary, because only text crosses the border. Nothing is trained here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from reward_models.chat import Message, Text, encode_dialogue, prepare_tokenizer, to_messages
from reward_models.errors import RewardError
from reward_models.normalise import FILE_NAME, Normalisation
from reward_models.protocol import Completion

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Array = npt.NDArray[np.float64]
DtypeName = Literal["float32", "bfloat16"]

logger = logging.getLogger(__name__)


class ScalarRewardModel:
    """Scores responses with a sequence-classification model of one label.

    Attributes:
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer, with the chat template that it was trained with.
        normalisation: Applied to the raw scores; the default leaves them as they are.
        batch_tokens: Upper limit of rows times longest row in one forward pass; a longer row is a batch of its own.
    """

    __name__ = "reward_model"  # loggers name reward functions by it

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        normalisation: Normalisation | None = None,
        batch_tokens: int = 8192,
    ) -> None:
        if batch_tokens < 1:
            raise RewardError(f"batch_tokens is {batch_tokens}; it must be at least 1.")
        if model.config.num_labels != 1:
            raise RewardError(f"A reward model has 1 label (num_labels), this one has {model.config.num_labels}.")
        # A tokenizer that was saved without a template belongs to a model that was trained on raw text.
        self.tokenizer = prepare_tokenizer(tokenizer, "auto" if tokenizer.chat_template else "none")
        self.model = model.eval()
        self.normalisation = normalisation or Normalisation()
        self.batch_tokens = batch_tokens
        self._pad_id = self._choose_pad_id()
        self.model.config.get_text_config().pad_token_id = self._pad_id  # where transformers looks for the last token

    @classmethod
    def from_folder(
        cls, path: str | Path, device: str = "cpu", batch_tokens: int = 8192, dtype: DtypeName = "float32"
    ) -> ScalarRewardModel:
        """Load a reward model from a folder.

        Args:
            path: A folder with config, weights, tokenizer and, unless scores are to stay raw, `normalisation.json`.
            device: Where the model computes.
            batch_tokens: See the class.
            dtype: Precision of the weights and of the computation; scores are float64 in any case.

        Raises:
            RewardError: The folder is missing, is no sequence-classification model of one label, or lacks weights.
        """
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        if not (Path(path) / "config.json").is_file():
            raise RewardError(f"There is no reward model in {path} (no config.json); run the reward stage first.")
        try:
            model, report = AutoModelForSequenceClassification.from_pretrained(
                path, dtype=getattr(torch, dtype), output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(path)
        except (OSError, ValueError, RuntimeError) as error:
            raise RewardError(f"{path} cannot be loaded as a reward model: {error}") from error
        if report["missing_keys"]:
            raise RewardError(
                f"{path} has no weights for {sorted(report['missing_keys'])}, so its scores would be random. "
                "Name the folder of a trained reward model, not of a language model."
            )
        if (Path(path) / FILE_NAME).is_file():
            normalisation = Normalisation.load(path)
        else:
            logger.warning("%s has no %s: its scores are taken as they are.", path, FILE_NAME)
            normalisation = Normalisation()
        return cls(model.to(device), tokenizer, normalisation, batch_tokens)

    def score(self, prompts: Sequence[Text], completions: Sequence[Completion]) -> Array:
        """Return the normalised scores, (N,); see `raw_score`."""
        return self.normalisation.apply(self.raw_score(prompts, completions))

    def raw_score(self, prompts: Sequence[Text], completions: Sequence[Completion]) -> Array:
        """Return the model's output at the last token of each conversation, (N,) in the given order.

        A conversation longer than the model's context is not cut: its score is NaN, with a warning that names it.

        Args:
            prompts: N prompts, each a string or a list of messages.
            completions: N responses, each a string or a list of messages that ends with one of the assistant.
        """
        pairs = zip(prompts, completions, strict=True)
        rows = [encode_dialogue(self.tokenizer, to_messages(p) + _response_messages(c)) for p, c in pairs]
        scores = np.full(len(rows), np.nan)
        for indices in self._batches(rows):
            scores[indices] = self._forward([rows[i] for i in indices])
        return scores

    def __call__(
        self, *, prompts: Sequence[Text], completions: Sequence[Completion], **columns: Any
    ) -> list[float | None]:
        """Return `score` in the form of a reward function."""
        return list(self.score(prompts, completions).tolist())

    def _batches(self, rows: list[list[int]]) -> Iterator[list[int]]:
        """Yield indices of rows of similar length, longest first: memory is then at its peak at the start."""
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        for i in order:
            if limit is not None and len(rows[i]) > limit:
                logger.warning("Sample %d has %d tokens, the reward model reads %d: no score.", i, len(rows[i]), limit)
        order = [i for i in order if limit is None or len(rows[i]) <= limit]
        while order:
            size = max(1, self.batch_tokens // len(rows[order[0]]))
            yield order[:size]
            order = order[size:]

    @torch.inference_mode()
    def _forward(self, rows: list[list[int]]) -> Array:
        """Score B rows of at most T tokens in one pass, padded on the right; returns (B,)."""
        width = max(len(row) for row in rows)
        ids = torch.tensor([row + [self._pad_id] * (width - len(row)) for row in rows])  # (B, T)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])  # (B, T), 1: a real token
        device = self.model.device
        logits = self.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits  # (B, 1)
        return np.asarray(logits[:, 0].double().cpu().numpy(), dtype=np.float64)

    def _choose_pad_id(self) -> int:
        """Return the id to pad with.

        transformers reads the score at the last token that is not pad. Every row ends with EOS, so any id but that of
        EOS is right: the tokenizer's where the model has an embedding for it, else an arbitrary one.
        """
        known, eos = self.model.get_input_embeddings().num_embeddings, self.tokenizer.eos_token_id
        if eos >= known:
            raise RewardError(
                f"The tokenizer of the reward model has no EOS among the {known} tokens that the model knows; give it "
                "the eos_token that it was trained with."
            )
        pad = int(self.tokenizer.pad_token_id)
        return pad if pad < known else int(eos == 0)


def check_reward_model(path: str | Path) -> None:
    """Look, without loading weights, whether a folder holds a sequence classifier of one label and a tokenizer.

    Raises:
        RewardError: It does not.
    """
    from transformers import AutoConfig, AutoTokenizer

    if not (Path(path) / "config.json").is_file():
        raise RewardError(f"There is no reward model in {path} (no config.json); run the reward stage first.")
    try:
        config = AutoConfig.from_pretrained(path)
        AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise RewardError(f"{path} cannot be loaded as a reward model: {error}") from error
    if not any("SequenceClassification" in name for name in config.architectures or ()):
        raise RewardError(
            f"{path} is no sequence classifier ({', '.join(config.architectures or ['unknown'])}), so its scores would "
            "be random. Name the folder of a trained reward model, not of a language model."
        )
    if config.num_labels != 1:
        raise RewardError(f"A reward model has 1 label (num_labels), {path} has {config.num_labels}.")


def _response_messages(completion: Completion) -> list[Message]:
    return [{"role": "assistant", "content": completion}] if isinstance(completion, str) else to_messages(completion)
