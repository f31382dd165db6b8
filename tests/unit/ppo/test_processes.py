"""Two processes do what one does, without starting any: they are threads that meet where processes would talk.

`Process` stands for Accelerate and behaves as DistributedDataParallel: the backward pass that is not held back averages
gradients. Real processes take the same steps in the integration tests, which take longer.
"""

import copy
import dataclasses
import threading
from contextlib import contextmanager

import pytest
import torch
from ppo_helpers import exact, make_ppo, ppo_section, prompts, random_episodes, runtime, tiny, weights

from rlhf.packing.microbatch import partition
from rlhf.policies.actor_critic import ActorCritic, SharedCritic
from rlhf.ppo import trainer as trainer_module
from rlhf.ppo.batch import collate
from rlhf.ppo.scoring import estimate_advantages, score
from rlhf.ppo.update import minibatch_rows, update

EPISODES = random_episodes(7, seed=3)
BUDGET = 12
SEED = 4
SETTINGS = ppo_section(
    epochs=2, minibatches=2, microbatch_tokens=BUDGET, temperature=0.7, value_coefficient=0.5,
    entropy_coefficient=0.1, max_gradient_norm=0.5, gamma=0.9, gae_lambda=0.8, whiten_rewards=True,
    bootstrap_truncated=True,
)  # fmt: skip


class Process:
    """One of `world` processes, as far as the engine needs to know."""

    device, distributed_type = torch.device("cpu"), "MULTI_CPU"

    def __init__(self, rank, barrier, table):
        self.process_index, self.num_processes, self.is_main_process = rank, len(table), rank == 0
        self.barrier, self.table, self.silent, self.model = barrier, table, False, None

    def exchange(self, value):
        """What every process brought, in the order of ranks."""
        self.table[self.process_index] = value
        self.barrier.wait()
        brought = list(self.table)
        self.barrier.wait()
        return brought

    def reduce(self, values, reduction):
        assert reduction == "sum"
        return sum(self.exchange(values))

    def gather(self, values):
        return torch.cat(self.exchange(values))

    @contextmanager
    def no_sync(self, model):
        self.silent = True
        yield
        self.silent = False

    def backward(self, loss):
        loss.backward()
        if not self.silent and self.num_processes > 1:
            own = [parameter.grad for parameter in self.model.parameters()]
            everyone = self.exchange([None if grad is None else grad.clone() for grad in own])
            for grad, *others in zip(own, *everyone, strict=True):
                if grad is not None:
                    grad.copy_(sum(others) / self.num_processes)


def together(world, work):
    """Run work(process) in as many processes; results in the order of ranks."""
    barrier, table, results = threading.Barrier(world, timeout=60), [None] * world, [None] * world

    def run(rank):
        try:
            results[rank] = work(Process(rank, barrier, table))
        except BaseException as error:
            results[rank] = error
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in sorted(results, key=lambda r: isinstance(r, threading.BrokenBarrierError)):
        if isinstance(result, BaseException):
            raise result
    return results


def actor_critic(seed=0):
    critic = SharedCritic(16).double()
    torch.nn.init.normal_(critic.score.weight, generator=torch.Generator().manual_seed(seed))
    return ActorCritic(exact(tiny(seed=seed)), critic, runtime())


# Made once: threads that draw initial weights would share a generator.
OWN, REFERENCE = actor_critic(), ActorCritic(exact(tiny(seed=1)), None, runtime())


def scored(process):
    """The rollout as one process sees it, scored and with advantages."""
    batch = collate(EPISODES, torch.float64, torch.device("cpu"))
    batch.truncated[::2] = True
    scored = score(batch, lambda part: OWN(part, 0.7), lambda part: REFERENCE(part, 0.7), SETTINGS, kl_coefficient=0.2,
                   accelerator=process)  # fmt: skip
    return estimate_advantages(scored, SETTINGS)


@pytest.fixture(scope="module")
def batch():
    return together(1, scored)[0]


def test_oracle_13_every_process_has_the_whole_batch(batch):
    assert batch.final_values.abs().min() > 0
    for seen in together(2, scored):
        for field in dataclasses.fields(batch):
            torch.testing.assert_close(getattr(seen, field.name), getattr(batch, field.name), atol=1e-12, rtol=0)


def test_oracle_13_two_processes_take_the_steps_of_one(batch):
    lengths = batch.lengths.tolist()
    rows = list(minibatch_rows(7, 2, 2, SEED))
    shares = [[partition(lengths, part, BUDGET, rank, 2) for rank in (0, 1)] for part in rows]
    assert any([] in share for pair in shares for share in pair)  # some process needs a filler
    tokens = [[int(batch.mask[[row for part in share for row in part]].sum()) for share in pair] for pair in shares]
    assert any(first != second for first, second in tokens)  # so a mean of means would be another mean
    noisy = dataclasses.replace(batch, logprobs=batch.logprobs + 0.3 * batch.advantages.sin())

    def learn(process):
        process.model = copy.deepcopy(OWN)
        optimizer = torch.optim.SGD(process.model.parameters(), lr=0.1)
        statistics = update(process.model, optimizer, noisy, SETTINGS, process, seed=SEED)
        return weights(process.model), statistics.means()

    ((alone, means),) = together(1, learn)
    assert 0 < means["clip_fraction"] < 1
    assert max(float((alone[name] - weight).abs().max()) for name, weight in weights(OWN).items()) > 1e-3
    for learnt, reported in together(2, learn):
        for name, weight in alone.items():
            torch.testing.assert_close(learnt[name], weight, atol=1e-10, rtol=0)
        assert reported == pytest.approx(means, rel=1e-9, abs=1e-12)


def test_oracle_13_processes_share_the_episodes_and_all_see_all(tmp_path, monkeypatch):
    """Each process plays its share; whitening and metrics need every episode on each, in the order of the plan."""

    def count(prompts, completions, completion_ids, **_):
        return [float(len(ids)) for ids in completion_ids]

    def play(process):
        with making:
            played = make_ppo(
                tiny(), reward=count, episodes_per_iteration=6,
                dataset=prompts([[3], [4, 5, 6], [5, 5]]), samples_per_prompt=2, max_response_tokens=5,
            )  # fmt: skip
        calls = []
        played.accelerator, here.process = process, process
        collect = played.source.collect
        monkeypatch.setattr(
            played.source, "collect", lambda *args, **kwargs: calls.append(len(args[1])) or collect(*args, **kwargs)
        )
        return [(e.index, e.sample_index, e.token_ids, e.score) for e in played.rollout(1)], calls

    making, here = threading.Lock(), threading.local()
    monkeypatch.setattr(
        trainer_module, "gather_object", lambda own: [item for part in here.process.exchange(own) for item in part]
    )
    ((alone, calls),) = together(1, play)
    assert (len(alone), calls) == (6, [6])
    for seen, calls in together(2, play):
        assert seen == alone
        assert calls == [3]
