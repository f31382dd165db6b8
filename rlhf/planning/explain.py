"""`rlhf ppo CONFIG --explain`: the batch arithmetic of a configuration as a table. No model is loaded, nothing written.

The numbers themselves are those of `arithmetic`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table

from envs.registry import make_text_env
from rlhf.config.schema import Config
from rlhf.data import load_rows
from rlhf.data.environment_rows import split_rows
from rlhf.errors import StageError
from rlhf.planning.arithmetic import BatchArithmetic, of_section


def print_explanation(config: Config) -> None:
    """Print how prompts become optimizer steps, in numbers and with the reason for each.

    Raises:
        StageError: There is no section `ppo`.
        UserError: The prompts cannot be read, or the environment cannot be made.
    """
    if config.ppo is None:
        raise StageError("The config has no section ppo: add it, or choose another command.")
    numbers = of_section(config.ppo, config.distributed.processes, count_prompts(config))
    table = Table("", "number", "computed (key), and why", box=box.SIMPLE_HEAD, pad_edge=False)
    table.columns[0].no_wrap = table.columns[1].no_wrap = True
    for line in explain(numbers):
        table.add_row(line.name, line.number, f"{line.computed} ({line.keys})\n{line.reason}")
    Console(highlight=False, markup=False).print(table)


def count_prompts(config: Config) -> int | None:
    """Count the prompts that training goes through; None if the environment makes them up from a seed."""
    assert config.ppo is not None
    section = config.ppo
    if section.environments:  # each goes through its own
        return None
    if section.data is not None:
        return len(load_rows(section.data, "prompts").train)
    environment = make_text_env(section.environment.id, **section.environment.kwargs)
    rows: int | None = getattr(environment.unwrapped, "num_rows", None)
    environment.close()
    return None if rows is None else len(split_rows(rows, config.held_out_fraction(section.environment))[0])


@dataclass(frozen=True)
class Line:
    """One number of the explanation."""

    name: str
    number: str
    computed: str
    keys: str  # the configuration's, that rule it
    reason: str


def explain(numbers: BatchArithmetic) -> Iterator[Line]:
    """Yield the arithmetic line by line, in the order in which one number leads to the next."""
    n = numbers
    yield Line(
        "prompts per iteration", f"{n.prompts}",
        f"responses / samples per prompt = {n.responses} / {n.samples_per_prompt}", "ppo.samples_per_prompt",
        "the next ones of a permutation that is drawn anew for each pass over the prompts",
    )  # fmt: skip
    yield Line(
        "responses per iteration", f"{n.responses}",
        f"prompts x samples per prompt = {n.prompts} x {n.samples_per_prompt}", "ppo.episodes_per_iteration",
        "one rollout; advantages are estimated and whitened over all of it",
    )  # fmt: skip
    yield Line(
        "responses per process", f"{n.process_responses}", f"responses / processes = {n.responses} / {n.processes}",
        "distributed.processes", "each samples its share; then all know all of them, so their number changes no result",
    )  # fmt: skip
    yield from _explain_minibatches(n)
    yield from _explain_steps(n)


def _explain_minibatches(n: BatchArithmetic) -> Iterator[Line]:
    yield Line(
        "minibatches per epoch", f"{n.minibatches}", "as configured", "ppo.minibatches",
        "more of them: more, noisier steps from the same responses",
    )  # fmt: skip
    yield Line(
        "responses per minibatch", f"{n.minibatch_responses}",
        f"responses / minibatches = {n.responses} / {n.minibatches}", "ppo.minibatches",
        "cut from a permutation that is drawn anew for each epoch: every response comes once an epoch",
    )  # fmt: skip
    yield Line(
        "tokens per microbatch", f"{n.microbatch_tokens}", "as configured", "ppo.microbatch_tokens",
        "one forward and backward pass, padding included: bounds memory, and cannot change the gradient, which is a "
        "sum over the minibatch's tokens that is divided once",
    )  # fmt: skip
    longest = f"{n.longest}" if n.longest is not None else "any"
    yield Line(
        "tokens per conversation", f"{n.shortest} to {longest}",
        "prompt + response" if n.longest is not None else "several turns: only the model's positions limit them",
        "ppo.rollout.max_prompt_tokens, ppo.rollout.max_response_tokens",
        "a microbatch is as wide as its longest conversation",
    )  # fmt: skip
    fewest, most = n.microbatches
    yield Line(
        "microbatches per minibatch", f"{fewest}" if fewest == most else f"{fewest} to {most}",
        f"{n.process_minibatch_responses} responses of a process, "
        f"as many at a time as fit into {n.microbatch_tokens} tokens",
        "ppo.microbatch_tokens", "the lengths of the responses decide; the gradients are added up",
    )  # fmt: skip


def _explain_steps(n: BatchArithmetic) -> Iterator[Line]:
    yield Line(
        "optimizer steps per iteration", f"{n.iteration_steps}", f"epochs x minibatches = {n.epochs} x {n.minibatches}",
        "ppo.epochs", "one for each minibatch, however many microbatches or processes it takes",
    )  # fmt: skip
    yield Line(
        "optimizer steps in the run", f"{n.run_steps}",
        f"iterations x steps per iteration = {n.iterations} x {n.iteration_steps}", "ppo.iterations",
        "the learning rate moves once an iteration, not once a step",
    )  # fmt: skip
    if n.passes is not None:
        yield Line(
            "passes over the prompts", f"{n.passes:.2f}",
            f"iterations x prompts per iteration / prompts = {n.iterations} x {n.prompts} / {n.num_prompts}",
            "ppo.iterations", "some prompts are never seen" if n.passes < 1 else "what comes again is answered anew",
        )  # fmt: skip
