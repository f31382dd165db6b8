"""Two episodes played before any model is loaded, a scripted answer in place of the policy's.

Environment, chat template and reward functions meet here as they will in training, through the same code, so what
cannot work is said before anything is spent. Nothing is learnt, and nothing is kept.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from rlhf.episodes.environment_source import EnvironmentSource
from rlhf.episodes.plan import plan
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


def rehearse(source: EnvironmentSource, *, seed: int, rows: int = _ROWS) -> None:
    """Open the environment's rows, and play two episodes to their end.

    Args:
        source: The configured environment, with the reward functions that can be called already.
        seed: That of the run, so that the first episodes are those of its first iteration.
        rows: Rows of the environment to open at most, where it has numbered ones.

    Raises:
        UserError: The environment, a prompt, the chat template or a reward function cannot be used.
    """
    source.check_prompts(most=rows)
    starts = plan(source.num_prompts, _EPISODES, 1, 0, seed)
    source.collect(ScriptedGenerator(source.tokenizer), starts, seed=seed, iteration=_ITERATION)
