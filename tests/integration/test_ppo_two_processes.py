"""One process and two take the same steps: the same rollout, the same gradient, the same weights.

The test starts this file as a program, once by itself and once under torchrun with gloo.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parents[1]


def count_tokens(prompts, completions, completion_ids, **_):
    return [float(len(ids)) for ids in completion_ids]


def run(folder: str) -> None:
    """Three steps on a fixed rollout of uneven episodes, then a sampled rollout; rank 0 writes what came out."""
    from ppo_helpers import advantaged, episode, exact, make_ppo, prompts, tiny

    world = int(os.environ.get("WORLD_SIZE", 1))
    episodes = [
        episode([3] * (1 + n % 3), [4 + (n + t) % 4 for t in range(1 + 3 * n % 11)], 0.3 * n - 1, index=n)
        for n in range(8)
    ]
    trainer = make_ppo(exact(tiny()), reference=exact(tiny(seed=1)), reward=count_tokens,
        dataset=prompts([[3], [4, 5, 6], [5, 5]]), episodes_per_iteration=8, total_episodes=32,
        max_response_tokens=6, microbatch_tokens=20, minibatches=2, epochs=1, learning_rate=1e-2,
        whiten_rewards=True, entropy_coefficient=0.1, max_gradient_norm=0.5,
    )  # fmt: skip
    assert trainer.accelerator.num_processes == world
    torch.nn.init.normal_(trainer.actor_critic.value_model.score.weight, generator=torch.Generator().manual_seed(0))
    metrics = []
    for iteration in range(3):
        batch = advantaged(trainer, episodes)
        metrics.append(trainer.update(batch, iteration).means())
    sampled = trainer.rollout(3)
    results = {
        "weights": {name: weight.detach() for name, weight in trainer.actor_critic.named_parameters()},
        "advantages": batch.advantages,
        "metrics": metrics,
        "tokens": [e.token_ids for e in sampled],
        "scores": [e.score for e in sampled],
    }
    torch.save(results, Path(folder, f"rank{trainer.accelerator.process_index}.pt"))


def start(folder: Path, processes: int) -> list[dict]:
    folder.mkdir()
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *(torchrun if processes > 1 else []), __file__, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(processes)]


@pytest.mark.slow
def test_oracle_13_two_processes_take_the_steps_of_one(tmp_path):
    (one,), two = start(tmp_path / "one", 1), start(tmp_path / "two", 2)
    for rank in two:
        for name, weight in one["weights"].items():
            torch.testing.assert_close(
                rank["weights"][name], weight, atol=1e-10, rtol=0, msg=lambda m, n=name: f"{n} {m}"
            )
        torch.testing.assert_close(rank["advantages"], one["advantages"], atol=1e-12, rtol=0)
        assert rank["tokens"] == one["tokens"]
        assert rank["scores"] == one["scores"]
        for got, expected in zip(rank["metrics"], one["metrics"], strict=True):
            assert got == pytest.approx(expected, rel=1e-9, abs=1e-12)
    for name, weight in two[0]["weights"].items():
        assert torch.equal(weight, two[1]["weights"][name])


if __name__ == "__main__":
    run(sys.argv[1])
