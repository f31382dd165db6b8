"""A judge: a reward model that PPO was not trained on scores the responses of a finished evaluation.

Works on what evaluate.json holds, so that nothing is sampled again. Used by `rlhf.study`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reward_models.calibration import PairMetrics, pair_metrics
from reward_models.chat import Message, Text, encode_dialogue, to_messages
from reward_models.scalar import ScalarRewardModel
from rlhf.config.data import DataConfig
from rlhf.config.training import RewardConfig
from rlhf.data import Preference, Tokens, load_rows

__all__ = ["component_values", "judge_values", "last_response", "pair_accuracy"]

Floats = NDArray[np.float64]


def judge_values(judge: ScalarRewardModel, responses: Sequence[dict[str, Any]], policy: str) -> Floats:
    """Score every response of one policy, in view of the conversation before it.

    Args:
        judge: The reward model.
        responses: (N,) entry `responses` of evaluate.json.
        policy: "before" or "after".

    Returns:
        (N,) normalised scores; NaN where a conversation is too long for the judge.
    """
    conversations = [_up_to_the_response(row[policy]["messages"]) for row in responses]
    prompts: list[Text] = [messages[:-1] for messages in conversations]
    return judge.score(prompts, [messages[-1:] for messages in conversations])


def component_values(responses: Sequence[dict[str, Any]], policy: str, component: str) -> Floats:
    """Read one component of the score, (N,), or the score itself as "score"; NaN where there is none."""
    entries = [row[policy] for row in responses]
    values = [entry["score"] if component == "score" else entry["components"].get(component) for entry in entries]
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def pair_accuracy(judge: ScalarRewardModel, section: RewardConfig, data: DataConfig) -> PairMetrics:
    """Measure how often the judge prefers the chosen response, on all pairs of `data`, none held back.

    Args:
        judge: The reward model.
        section: Says how long a row may be.
        data: Pairs that the judge was not fitted on.
    """
    whole = DataConfig.model_validate({**data.model_dump(), "validation_fraction": 0.0, "test_fraction": 0.0})

    def encode(prompt: Text, response: str | None) -> Tokens:
        return Tokens([], encode_dialogue(judge.tokenizer, [*to_messages(prompt), _turn(response or "")]))

    pairs: list[Preference] = load_rows(whole, "preferences", encode=encode, max_tokens=section.max_tokens).train
    chosen, rejected = (
        judge.raw_score([pair.sides[side][0] for pair in pairs], [pair.sides[side][1] for pair in pairs])
        for side in (0, 1)
    )
    return pair_metrics(chosen, rejected)


def last_response(messages: list[Message]) -> str:
    """The text of the last response of a conversation."""
    return str(_up_to_the_response(messages)[-1]["content"])


def _up_to_the_response(messages: list[Message]) -> list[Message]:
    """Cut off what the environment said after the last response."""
    last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
    return messages[: last + 1]


def _turn(content: str) -> Message:
    return {"role": "assistant", "content": content}
