"""Two episodes played before any model is loaded, a scripted answer in place of the policy's.

Environment, chat template and reward functions meet here as they will in training, through the same code, so what
cannot work is said before anything is spent. Nothing is learnt, and nothing is kept.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from rlhf.episodes.environment_source import EnvironmentSource
from rlhf.episodes.plan import Start
from rlhf.generation.generator import Request, Sample

__all__ = ["ScriptedGenerator", "rehearse"]

ANSWER = "Yes, of course."
_EPISODES = 2  # a reward function sees a batch
_ROWS = 1000  # of an environment with numbered rows, each of which is opened
_ITERATION = -3  # names the noise, of which none is drawn


class ScriptedGenerator:
    """A `Generator` that answers every request alike, as far as its length allows."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._answer = [*tokenizer.encode(ANSWER, add_special_tokens=False), int(tokenizer.eos_token_id)]

    def update(self) -> None:
        """Do nothing: there are no weights."""

    def generate(self, requests: Sequence[Request]) -> list[Sample]:
        """Return the script, cut where a response must end."""
        return [self._sample(request.max_tokens) for request in requests]

    def release(self) -> None:
        """Do nothing."""

    def _sample(self, most: int) -> Sample:
        ids = self._answer[:most]
        return Sample(ids, [0.0] * len(ids), "eos" if len(ids) == len(self._answer) else "length")


def rehearse(source: EnvironmentSource, starts: Sequence[Start], *, seed: int) -> None:
    """Open the rows that will be played, and play the first two episodes to their end.

    Args:
        source: The configured environment, with the reward functions that can be called already.
        starts: What will be played.
        seed: That of the run.

    Raises:
        UserError: The environment, a prompt, the chat template or a reward function cannot be used.
    """
    if source.num_prompts is not None:
        source.check_prompts(starts[:_ROWS])
    source.collect(ScriptedGenerator(source.tokenizer), starts[:_EPISODES], seed=seed, iteration=_ITERATION)
