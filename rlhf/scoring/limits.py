"""How long a conversation may be, so that everybody who reads it has room for it."""

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from reward_models.chat import closing_tokens
from rlhf.config.schema import Config
from rlhf.models.load import max_positions

__all__ = ["readable_tokens"]


def readable_tokens(config: Config, tokenizer: PreTrainedTokenizerBase, model_config: PretrainedConfig) -> int | None:
    """Most tokens that prompts and responses of an episode may have together; None if nothing limits them.

    The policy has a position for each. A reward model on the same backbone also reads what the chat template writes
    behind a response, EOS at least, where the response was cut off without it.

    Args:
        config: `ppo.rewards` and `reward.model` say who reads.
        tokenizer: The policy's.
        model_config: The policy's.
    """
    positions = max_positions(model_config)
    assert config.ppo is not None
    own = config.ppo.rewards.get("reward_model")
    reads = own is not None and own.function is None and own.path is None
    if positions is None or not reads or (config.reward is not None and config.reward.model is not None):
        return positions
    return positions - closing_tokens(tokenizer)
