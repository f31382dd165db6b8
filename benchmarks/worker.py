"""One measurement in a process of its own, so that peak memory is that of one trainer: `python -m benchmarks.worker`.

Prints one line of JSON: seconds of each iteration and phase, tokens, peak memory.
"""

import argparse
import json
import resource
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks.shapes import SHAPES, build
from benchmarks.trainers import MODES, PHASES, shape_options, train


def main() -> None:
    """Run one shape with one trainer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--iterations", type=int, default=2, help="if several, the first warms up and is not counted")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--policy", type=Path, help="folder of the SFT policy, for shapes C and D")
    print(json.dumps(measure(**vars(parser.parse_args()))))


def measure(shape: str, mode: str, iterations: int, seed: int, policy: Path | None) -> dict[str, Any]:
    """Build the models, train, and return what was measured: means over the iterations that count."""
    warnings.simplefilter("ignore")
    sizes, trainer = SHAPES[shape], MODES[mode]
    roles = build(sizes, policy, torch.bfloat16 if trainer.bf16_weights else torch.float32)
    records = train(trainer, roles, shape_options(sizes, iterations) | {"seed": seed})
    counted = records[1:] or records
    phases = {phase: sum(record[f"seconds/{phase}"] for record in counted) / len(counted) for phase in PHASES}
    return {
        "seconds": sum(phases.values()),
        "first_seconds": sum(records[0][f"seconds/{phase}"] for phase in PHASES),
        "phases": phases,
        "prompt_tokens": sum(len(row) for row in roles.prompts["input_ids"]),
        "response_tokens": sum(record["response_tokens"] for record in counted) / len(counted),
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


if __name__ == "__main__":
    main()
