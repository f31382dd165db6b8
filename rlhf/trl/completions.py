"""Responses to the prompts of `eval_dataset`, printed for people to look at."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

from rlhf.episodes.episode import Episode
from rlhf.episodes.plan import Start
from rlhf.generation.torch_generator import TorchGenerator
from rlhf.trl.token_dataset import TokenDatasetSource

TEMPERATURE = 0.01  # nearly greedy


def sample(source: TokenDatasetSource, policy: nn.Module, training: TorchGenerator, *, seed: int) -> list[Episode]:
    """Sample one response to each prompt, with the weights as they are now; every process must call this.

    Args:
        source: The prompts.
        policy: Whose responses are wanted.
        training: The generator of the loop: but for the temperature, responses are sampled as it does.
        seed: Of the run.
    """
    settings = training.settings.model_copy(update={"temperature": TEMPERATURE})
    generator = TorchGenerator(policy, settings, training.stop_token_ids, training.decode, training.runtime)
    generator.update()
    starts = [Start(index, sample_index=0, seed=0) for index in range(source.num_prompts)]
    return source.collect(generator, starts, seed=seed, iteration=0)


def show(episodes: Sequence[Episode]) -> None:
    """Print prompts, responses and scores as a table."""
    table: Any = Table("prompt", "response", "score", show_lines=True)
    for episode in episodes:
        table.add_row(Text(str(episode.prompt)), Text("\n\n".join(episode.responses)), f"{episode.score:.3f}")
    Console().print(table)
