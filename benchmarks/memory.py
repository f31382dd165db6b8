"""What each form of critic and reward model costs in memory, on the quickstart's model: `python -m benchmarks.memory`.

Each form is a process of its own, which makes the roles as the PPO stage makes them and plays one iteration. Weights
and optimizer states are counted tensor by tensor, shared memory once; peaks are the operating system's. Prints a table
and writes benchmarks/results/memory.json. Linux only, as it reads /proc.
"""

import argparse
import gc
import json
import platform
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "memory.json"
CONFIG = Path("configs/quickstart.yaml")
# The quickstart without its SFT stage; its reward model is as deep as the policy here, so that it can share the trunk.
COMMON = ("sft=null", "evaluate=null", "reward.model=null", "ppo.iterations=1")
FULL = ("model.lora=null", "ppo.learning_rate=1.0e-5")
FORMS = {
    "LoRA, critic separate": ("ppo.critic.type=separate",),
    "LoRA, critic shared": ("ppo.critic.type=shared",),
    "LoRA, critic adapter": ("ppo.critic.type=adapter",),
    "LoRA, critic adapter, reward model on the trunk": (
        "ppo.critic.type=adapter",
        "ppo.rewards.reward_model.share_trunk=true",
    ),
    "all weights, critic separate": ("ppo.critic.type=separate", *FULL),
    "all weights, critic shared": ("ppo.critic.type=shared", *FULL),
}
COLUMNS = ("policy", "reference", "critic", "reward_model", "decoder", "optimizer", "sum", "peak")
MEGABYTE = 1e6


def main() -> None:
    """Measure all forms and keep what came out, or, with `--form`, measure one in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--form", choices=FORMS, help="measure one form in this process and print it as JSON")
    parser.add_argument("--run", type=Path, help="a run folder with a reward model, for --form")
    arguments = parser.parse_args()
    if arguments.form:
        print(json.dumps(measure(FORMS[arguments.form], arguments.run)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_reward_model(Path(folder))
        forms = {form: in_a_process(form, folder) for form in FORMS}
    result = {"date": date.today().isoformat(), "machine": machine(), "unit": "MB (1e6 bytes)", "forms": forms}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


def in_a_process(form: str, folder: str) -> dict[str, int]:
    """Measure one form in a process of its own, and show it."""
    command = [sys.executable, "-m", "benchmarks.memory", "--form", form, "--run", folder]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    measured: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    print(f"| {form} | " + " | ".join(str(measured[name]) for name in COLUMNS) + " |", flush=True)
    return measured


def machine() -> dict[str, Any]:
    """Describe what was measured on."""
    import torch

    return {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(_kilobytes("/proc/meminfo", "MemTotal") * 1024 / 1e9),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def configuration(overrides: Iterable[str]) -> Any:
    """The quickstart's, changed."""
    from rlhf.config.load import load_config

    return load_config(CONFIG, [*COMMON, *overrides]).config


def make_reward_model(root: Path) -> None:
    """Leave what the reward stage would leave; untrained, since weights weigh the same."""
    from reward_models.normalise import Normalisation
    from rlhf.files.run_folder import RunFolder
    from rlhf.models.adapters import add_adapters, merge_and_save
    from rlhf.models.load import load_sequence_classifier
    from rlhf.models.shared_trunk import fingerprint, save_adapter
    from rlhf.scoring.shared_reward import ADAPTER
    from rlhf.stages.base_model import policy_tokenizer

    config, folder = configuration(()), RunFolder(root)
    tokenizer = policy_tokenizer(config)
    model = add_adapters(load_sequence_classifier(config.model, tokenizer), config.model.lora, "reward_model")
    trunk, settings = fingerprint(model), model.peft_config["default"]
    weights = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    merge_and_save(model, tokenizer, folder.reward)
    save_adapter(folder.reward / ADAPTER, settings, weights, "default", trunk)
    Normalisation(mean=0.0, std=1.0, samples=2).save(folder.reward)


def measure(overrides: Iterable[str], root: Path) -> dict[str, int]:
    """Make the roles, play one iteration, and return megabytes."""
    from rlhf.files.run_folder import RunFolder
    from rlhf.generation.torch_generator import TorchGenerator
    from rlhf.launch.runtime import Runtime
    from rlhf.ppo.roles import Roles
    from rlhf.ppo.trainer import PPO
    from rlhf.scoring.scorer import build_scorer
    from rlhf.stages import ppo as stage
    from rlhf.stages.base_model import policy_tokenizer

    warnings.simplefilter("ignore")
    config, folder = configuration(overrides), RunFolder(root)
    runtime = Runtime.detect(config.runtime, config.model)
    tokenizer = policy_tokenizer(config)
    policy = stage.make_policy(config, folder, tokenizer)
    critic = stage.make_critic(config, folder, tokenizer, policy)
    inputs = stage.Inputs(tokenizer, stage.load_prompts(config, tokenizer))
    scorer = build_scorer(config, folder, runtime, policy)
    source = stage.make_source(config, inputs, scorer, policy.config, count=config.ppo.episodes_per_iteration)
    stop = (int(tokenizer.eos_token_id),)
    generator = TorchGenerator(policy, config.ppo.rollout, stop, tokenizer.decode, runtime)
    ppo = PPO(config.ppo, Roles(policy, critic), source, generator, runtime, seed=config.seed)
    with peak() as resident:
        ppo.train()
    [component] = source.environments.scorer.components
    found = tensors_of(ppo, component.function.model)
    weights = {role: round(size / MEGABYTE) for role, size in sizes(found).items()}
    total = {"sum": sum(weights.values())}
    return weights | total | {name: round(kilobytes * 1024 / MEGABYTE) for name, kilobytes in resident.items()}


def tensors_of(ppo: Any, reward_model: Any) -> dict[str, list[Any]]:
    """The tensors of each role, in the order in which shared memory is counted."""
    import torch

    from rlhf.models.shared_trunk import CRITIC, REWARD, belongs_to

    def tensors(module: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(module, torch.nn.Module):
            yield from module.named_parameters()
            yield from module.named_buffers()

    on_trunk = list(tensors(ppo.actor_critic.policy))
    others = {role: [t for name, t in on_trunk if belongs_to(name, role)] for role in (CRITIC, REWARD)}
    further = {id(tensor) for role in others.values() for tensor in role}
    state = [value for entry in ppo.optimizer.state.values() for value in entry.values() if torch.is_tensor(value)]
    return {
        "policy": [tensor for _, tensor in on_trunk if id(tensor) not in further],
        "reference": [tensor for _, tensor in tensors(ppo.reference and ppo.reference.policy)],
        "critic": [*others[CRITIC], *(tensor for _, tensor in tensors(ppo.actor_critic.value_model))],
        "reward_model": [*others[REWARD], *(tensor for _, tensor in tensors(reward_model))],
        "decoder": [tensor for _, tensor in tensors(ppo.generator._weights.refresh())],
        "optimizer": state,
    }


def sizes(found: dict[str, list[Any]]) -> dict[str, int]:
    """Bytes of each role; memory that an earlier one has counted is not counted again."""
    seen: set[int] = set()
    counted = {}
    for role, tensors in found.items():
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        counted[role] = sum(size for place, size in storages.items() if place not in seen)
        seen |= set(storages)
    return counted


@contextmanager
def peak() -> Iterator[dict[str, int]]:
    """Inside, watch how much memory of the process is resident; gives kilobytes before and at the highest."""
    gc.collect()
    resident = {"before": _kilobytes("/proc/self/status", "VmRSS")}
    Path("/proc/self/clear_refs").write_text("5")  # sets the highest value to the present one
    yield resident
    resident["peak"] = _kilobytes("/proc/self/status", "VmHWM")


def _kilobytes(file: str, key: str) -> int:
    [line] = [line for line in Path(file).read_text().splitlines() if line.startswith(f"{key}:")]
    return int(line.split()[1])


if __name__ == "__main__":
    main()
