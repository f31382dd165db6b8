"""One measurement in a process of its own, so that peak memory is that of one trainer: `python -m benchmarks.worker`.

Prints one line of JSON: seconds of each iteration and phase, tokens, peak memory.
"""

import argparse
import json
import os
import resource
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

MODES = {
    # TRL's own bf16 flag does nothing (its Accelerator stays at "no"): autocast comes from the environment, or the
    # weights themselves are bfloat16. Eager attention avoids torch's slow bfloat16 attention backward on CPUs.
    "trl_fp32": {},
    "trl_autocast": {"autocast": True},
    "trl_autocast_eager": {"autocast": True, "eager": True},
    "trl_bf16": {"bf16_weights": True},
    "trl_bf16_eager": {"bf16_weights": True, "eager": True},
    "fp32": {},
    "bf16": {"bf16": True},
    "best": {"bf16": True, "critic": "shared"},
}


def main() -> None:
    """Run one shape with one trainer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape")
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--iterations", type=int, default=2, help="the first one warms up and is not counted")
    parser.add_argument("--policy", type=Path, help="folder of the SFT policy, for shapes C and D")
    arguments = parser.parse_args()
    options = MODES[arguments.mode]
    if options.get("autocast"):
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
    print(json.dumps(measure(arguments.shape, arguments.mode, options, arguments.iterations, arguments.policy)))


def measure(name: str, mode: str, options: dict[str, Any], iterations: int, policy: Path | None) -> dict[str, Any]:
    """Build the models, train, and return what was measured."""
    import torch

    from benchmarks.shapes import SHAPES, build

    warnings.simplefilter("ignore")
    shape = SHAPES[name]
    roles = build(shape, policy, torch.bfloat16 if options.get("bf16_weights") else torch.float32)
    if options.get("eager"):
        for model in (roles.policy, roles.reference, roles.reward, roles.critic):
            if model is not None:
                model.set_attn_implementation("eager")
    run = _run_trl if mode.startswith("trl_") else _run_ours
    with tempfile.TemporaryDirectory() as scratch:
        phases, lengths = run(shape, roles, options, iterations, scratch)
    measured = phases[1:] if len(phases) > 1 else phases
    return {
        "seconds": [sum(phase.values()) for phase in measured],
        "phases": {key: sum(phase[key] for phase in measured) / len(measured) for key in measured[0]},
        "prompt_tokens": sum(len(row) for row in roles.prompts["input_ids"]),
        "response_tokens": lengths[-1],
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def _common(shape: Any, iterations: int, scratch: str) -> dict[str, Any]:
    """Options that both trainers read alike; one optimizer step a minibatch for both, see `_run_trl`."""
    return {
        "output_dir": scratch,
        "total_episodes": iterations * shape.episodes,
        "per_device_train_batch_size": shape.episodes // shape.minibatches,
        "gradient_accumulation_steps": shape.minibatches,
        "num_mini_batches": shape.minibatches,
        "num_ppo_epochs": shape.epochs,
        "response_length": shape.response_tokens,
        "local_rollout_forward_batch_size": shape.episodes,
        "temperature": 0.7,
        "learning_rate": 1e-6,
        "num_sample_generations": 0,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
    }


def _run_trl(
    shape: Any, roles: Any, options: dict[str, Any], iterations: int, scratch: str
) -> tuple[list[dict[str, float]], list[int]]:
    """TRL's trainer. Its data set is one batch: only then does it step after each minibatch, as it says it does."""
    import trl.experimental.ppo.ppo_trainer as stock
    from transformers import TrainerCallback

    from rlhf.trl_bridge import TrlPPOConfig, TrlPPOTrainer

    phases: list[dict[str, float]] = []
    lengths: list[int] = []
    generate = stock.batch_generation
    clock = {"start": 0.0, "generated": 0.0, "update": 0.0}

    def timed_generation(*args: Any, **kwargs: Any) -> Any:
        clock["start"], clock["update"] = time.perf_counter(), 0.0
        result = generate(*args, **kwargs)
        clock["generated"] = time.perf_counter()
        prompt_width = args[1].shape[1]
        ended = (result[0][:, prompt_width:] == roles.tokenizer.eos_token_id).int()
        first = ended.argmax(1) + 1
        lengths.append(int(first.where(ended.any(1), shape.response_tokens).sum()))
        return result

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            end = time.perf_counter()
            phases.append(
                {
                    "rollout": clock["generated"] - clock["start"],
                    "score": clock["update"] - clock["generated"],
                    "update": end - clock["update"],
                }
            )

    stock.batch_generation = timed_generation
    arguments = TrlPPOConfig(**_common(shape, iterations, scratch), bf16=False)
    if shape.vocabulary is None:
        arguments.stop_token = "eos"
    trainer = TrlPPOTrainer(
        args=arguments,
        processing_class=roles.tokenizer,
        model=roles.policy,
        ref_model=roles.reference,
        reward_model=roles.reward,
        value_model=roles.critic,
        train_dataset=roles.prompts,
        eval_dataset=roles.prompts,
        peft_config=roles.peft_config,
        callbacks=[Clock()],
    )
    permutation = stock.np.random.permutation

    def first_permutation(*args: Any) -> Any:  # the update begins with it
        clock["update"] = clock["update"] or time.perf_counter()
        return permutation(*args)

    stock.np.random.permutation = first_permutation
    trainer.train()
    return phases, lengths


def _run_ours(
    shape: Any, roles: Any, options: dict[str, Any], iterations: int, scratch: str
) -> tuple[list[dict[str, float]], list[int]]:
    from rlhf.ppo import PPOConfig, PPOTrainer

    phases: list[dict[str, float]] = []
    lengths: list[int] = []
    arguments = PPOConfig(
        **_common(shape, iterations, scratch),
        bf16=bool(options.get("bf16")),
        critic=options.get("critic", "separate"),
        stop_token="eos",
        min_response_length=shape.response_tokens if shape.vocabulary else 0,
    )

    def note(iteration: Any) -> None:
        prefix = "ppo/seconds/"
        phases.append({k.removeprefix(prefix): v for k, v in iteration.metrics.items() if k.startswith(prefix)})
        lengths.append(sum(episode.response_length for episode in iteration.episodes))

    trainer = PPOTrainer(
        args=arguments,
        processing_class=roles.tokenizer,
        model=roles.policy,
        ref_model=roles.reference,
        reward_model=roles.reward,
        value_model=None if arguments.critic == "shared" else roles.critic,
        train_dataset=roles.prompts,
        peft_config=roles.peft_config,
        on_iteration=note,
    )
    trainer.train()
    return phases, lengths


if __name__ == "__main__":
    main()
