"""Batch arithmetic: how many prompts, responses, minibatches, microbatches and optimizer steps a run has, and why.

    prompts -> responses -> minibatches -> microbatches -> optimizer steps

Worked out before anything is loaded (`explain` prints it), and held against what was done behind each iteration
(`check`, called by the loop). Nothing here plans or cuts: `episodes.plan`, `update.minibatch_rows` and
`microbatch.partition` do, and have to agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Protocol

from rlhf.config.ppo import PPOSectionConfig

_ONE_TURN = "rlhf/Prompts-v0"  # its episodes end with the first response


class Played(Protocol):
    """What is read of an episode: which prompt it answers, and which of several responses it is."""

    @property
    def index(self) -> int: ...  # noqa: D102
    @property
    def sample_index(self) -> int: ...  # noqa: D102


class Updated(Protocol):
    """What is read of an update's statistics."""

    @property
    def steps(self) -> int: ...  # noqa: D102
    @property
    def microbatches(self) -> int: ...  # noqa: D102


@dataclass(frozen=True)
class BatchArithmetic:
    """The numbers that are given; the others follow from them.

    Attributes:
        iterations: Rollouts of the run, each followed by an update.
        responses: Responses (episodes) of one iteration, over all processes.
        samples_per_prompt: Responses for each prompt of an iteration.
        processes: Processes that share the work.
        epochs: Passes over the responses of an iteration.
        minibatches: Parts of one pass.
        microbatch_tokens: Tokens of one forward and backward pass, padding included.
        shortest: Tokens that every conversation has at least.
        longest: Tokens that a conversation has at most; None if nothing limits it.
        num_prompts: Prompts that there are; None if the environment makes them up.
    """

    iterations: int
    responses: int
    samples_per_prompt: int
    processes: int
    epochs: int
    minibatches: int
    microbatch_tokens: int
    shortest: int
    longest: int | None
    num_prompts: int | None

    @property
    def prompts(self) -> int:
        """Prompts of one iteration."""
        return self.responses // self.samples_per_prompt

    @property
    def process_responses(self) -> int:
        """Responses that each process samples in one iteration."""
        return self.responses // self.processes

    @property
    def minibatch_responses(self) -> int:
        """Responses of one minibatch, over all processes."""
        return self.responses // self.minibatches

    @property
    def process_minibatch_responses(self) -> int:
        """Responses of one minibatch that a process takes at most."""
        return ceil(self.minibatch_responses / self.processes)

    @property
    def iteration_steps(self) -> int:
        """Optimizer steps of one iteration."""
        return self.steps(self.responses)

    @property
    def run_steps(self) -> int:
        """Optimizer steps of the run."""
        return self.iterations * self.iteration_steps

    @property
    def passes(self) -> float | None:
        """How often the run goes through its prompts; None if they have no number."""
        return None if self.num_prompts is None else self.iterations * self.prompts / self.num_prompts

    @property
    def microbatches(self) -> tuple[int, int]:
        """Fewest and most microbatches of one minibatch, for each process."""
        return microbatch_bounds(
            self.minibatch_responses, self.processes, self.microbatch_tokens, self.shortest, self.longest
        )

    def steps(self, scored: int) -> int:
        """Optimizer steps of an iteration of which `scored` responses are left: one for each minibatch that has one."""
        return self.epochs * len(minibatch_sizes(scored, self.minibatches))

    def check(self, episodes: Sequence[Played], lengths: Sequence[int], done: Updated | None) -> None:
        """Hold an iteration against what was announced.

        Args:
            episodes: All its episodes, of all processes.
            lengths: Tokens of each conversation that was scored and updated on.
            done: The statistics of the update; None if there was none.

        Raises:
            AssertionError: What was done is not what was announced: a bug of this package.
        """
        _expect("responses", len(episodes), self.responses, self.responses)
        answered = {(episode.index, episode.sample_index // self.samples_per_prompt) for episode in episodes}
        _expect("prompts", len(answered), self.prompts, self.prompts)
        _expect("scored responses", len(lengths), 0, self.responses)
        if done is None:
            return
        _expect("tokens of the longest conversation", max(lengths), self.shortest, self.longest)
        _expect("optimizer steps", done.steps, self.steps(len(lengths)), self.steps(len(lengths)))
        _expect("microbatches of a process", done.microbatches, *self._update_bounds(lengths))

    def _update_bounds(self, lengths: Sequence[int]) -> tuple[int, int]:
        """Fewest and most microbatches of a process in an update on conversations of these lengths."""
        bounds = [
            microbatch_bounds(size, self.processes, self.microbatch_tokens, min(lengths), max(lengths))
            for size in minibatch_sizes(len(lengths), self.minibatches)
        ]
        return self.epochs * sum(low for low, _ in bounds), self.epochs * sum(high for _, high in bounds)


def of_section(section: PPOSectionConfig, processes: int, num_prompts: int | None) -> BatchArithmetic:
    """Read the arithmetic off the `ppo` section of a configuration."""
    rollout = section.rollout
    one_turn = all(each.id == _ONE_TURN or each.max_turns == 1 for each in section.mixture)
    return BatchArithmetic(
        iterations=section.iterations,
        responses=section.episodes_per_iteration,
        samples_per_prompt=section.samples_per_prompt,
        processes=processes,
        epochs=section.epochs,
        minibatches=section.minibatches,
        microbatch_tokens=section.microbatch_tokens,
        shortest=2,  # a token to answer and one of the answer
        # An environment that answers may say anything, so only the model's positions limit several turns.
        longest=rollout.max_prompt_tokens + rollout.max_response_tokens if one_turn else None,
        num_prompts=num_prompts,
    )


def minibatch_sizes(scored: int, minibatches: int) -> list[int]:
    """Responses of each minibatch of an epoch: as equal as can be, the longer ones first, none of them empty."""
    each, left = divmod(scored, minibatches)
    return [size for number in range(minibatches) if (size := each + (number < left))]


def microbatch_bounds(rows: int, processes: int, budget: int, shortest: int, longest: int | None) -> tuple[int, int]:
    """Fewest and most microbatches into which each process cuts its share of a minibatch.

    A microbatch is as wide as its longest row, so it takes between budget // longest and budget // shortest rows, and
    at least one, whatever the budget.

    Args:
        rows: Rows of the minibatch, over all processes.
        processes: Processes that share them; all make as many microbatches as the one with most.
        budget: Tokens of one microbatch, padding included.
        shortest: Tokens of the shortest row.
        longest: Tokens of the longest row; None if unknown.
    """
    share = ceil(rows / processes)
    most_rows = max(1, budget // shortest)
    fewest_rows = max(1, budget // longest) if longest is not None else 1
    return ceil(share / most_rows), ceil(share / fewest_rows)


def _expect(name: str, got: int, low: int, high: int | None) -> None:
    if got < low or (high is not None and got > high):
        announced = f"{low}" if low == high else f"{low} to {high}" if high is not None else f"{low} or more"
        raise AssertionError(f"batch arithmetic: {got} {name}, where {announced} were announced")
