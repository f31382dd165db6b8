"""Which policy a later stage starts from: what the SFT stage left, or the configured model itself."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from rlhf.config.schema import Config
from rlhf.errors import StageError
from rlhf.files.run_folder import RunFolder
from rlhf.models.load import load_tokenizer
from rlhf.stages.corpus import texts


def policy_folder(config: Config, folder: RunFolder) -> Path | None:
    """Return the SFT stage's folder, None in a run without that stage.

    Raises:
        StageError: The stage has not run yet.
    """
    if config.sft is None:
        return None
    if not (folder.sft / "config.json").is_file():
        raise StageError(f"{folder.sft} has no model yet: run `rlhf sft` first, or `rlhf run` for all stages")
    return Path(folder.sft)


def policy_tokenizer(config: Config) -> PreTrainedTokenizerBase:
    """Load the policy's tokenizer, or train it on the texts of all stages if the model is built from scratch.

    No stage has to have run: the SFT stage saves the same tokenizer that this returns.
    """
    from_scratch = config.model.architecture is not None
    return load_tokenizer(config.model, texts(config) if from_scratch else None)
