"""Train each probe of `envs.tasks.probes` in seconds, and say how far its score is from the best one.

All probes start from one tiny policy that says the four letters by chance. Their settings are ordinary keys of a
configuration, so overrides show whether another estimator, critic, precision or device still learns.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from envs.tasks.probes import BEST
from rlhf.config.load import load_config
from rlhf.config.schema import Config
from rlhf.config.yaml_reader import format_value
from rlhf.errors import StageError
from rlhf.files.run_folder import RunFolder
from rlhf.tracking.jsonl import read_series
from rlhf.tracking.tracker import Tracker

PROBES = {
    "token": ("rlhf/ProbeToken-v0", "the policy gradient: sign, ratio, stop token"),
    "copy": ("rlhf/ProbeCopy-v0", "reading the prompt: positions, masks, templates"),
    "noise": ("rlhf/ProbeNoise-v0", "averaging over noise: advantages, step size"),
    "two_turns": ("rlhf/ProbeTwoTurns-v0", "each turn's own reward: masks between turns"),
    "delay": ("rlhf/ProbeDelay-v0", "a reward two turns later: discount, GAE, critic"),
}
_NEAR = 0.1  # of the best score; the last iterations' mean is exact to about 0.03 under noise
_LAST = 5  # iterations over which the score is averaged
_SETTINGS = (
    "model.architecture={hidden_size: 32, layers: 2, heads: 2, max_positions: 128}",
    "model.tokenizer={vocab_size: 300}",
    "sft={data: {path: 'envs.tasks.probes:babble'}, epochs: 4, batch_size: 32, learning_rate: 3.0e-3, max_tokens: 128}",
    "ppo.rollout={max_response_tokens: 4, max_prompt_tokens: 100, batch_size: 256}",
    "ppo.kl.coefficient=0",
    "ppo.critic={type: shared}",
    "ppo.iterations=60",
    "ppo.episodes_per_iteration=256",
    "ppo.epochs=2",
    "ppo.minibatches=2",
    "ppo.microbatch_tokens=16384",
    "ppo.learning_rate=3.0e-3",
    "ppo.scheduler=constant",
    "tracking={wandb: {mode: disabled}, tensorboard: false, report: false}",
    "runtime.compile_kernels=false",
)


@dataclass(frozen=True)
class Result:
    """How a probe went.

    Attributes:
        name: Its name.
        tests: What it tests, in words.
        first: Mean score of the first iteration's episodes, before the first update.
        score: Mean score of the last iterations' episodes.
        iterations: How many were trained.
    """

    name: str
    tests: str
    first: float
    score: float
    iterations: int

    @property
    def best(self) -> float:
        """The best mean score that there is."""
        return BEST

    @property
    def distance(self) -> float:
        """From the best score that there is."""
        return BEST - self.score

    @property
    def reached(self) -> bool:
        """Whether the best score is near enough."""
        return self.distance <= _NEAR


def run_probes(names: Sequence[str], overrides: Sequence[str]) -> Iterator[Result]:
    """Train probes, one after the other, and yield each result as it is there.

    Args:
        names: Keys of `PROBES`; none: all.
        overrides: `key.path=value`, on top of the probes' settings.

    Raises:
        StageError: There is no such probe.
        ConfigError: An override is wrong.
    """
    unknown = [name for name in names if name not in PROBES]
    if unknown:
        raise StageError(f"there is no probe {unknown[0]!r}; allowed: {', '.join(PROBES)}")
    with tempfile.TemporaryDirectory(prefix="rlhf-probe-") as root:
        start = RunFolder(Path(root) / "start")
        _run("sft", _config(Path(root), overrides), start)
        for name in names or PROBES:
            id, tests = PROBES[name]
            own = ["sft=null", f"model.path={format_value(str(start.sft))}", "model.architecture=null"]
            own += ["model.tokenizer=null", f"ppo.environment.id={id}"]
            folder = RunFolder(Path(root) / name)
            _run("ppo", _config(Path(root), [*overrides, *own]), folder)
            scores = [score for _, score in read_series(folder.root)["ppo/score"]]
            yield Result(name, tests, scores[0], float(np.mean(scores[-_LAST:])), len(scores))


def _config(root: Path, overrides: Sequence[str]) -> Config:
    environment = f"ppo.environment.id={PROBES['token'][0]}"
    return load_config(None, [f"runs_dir={format_value(str(root))}", environment, *_SETTINGS, *overrides]).config


def _run(stage: str, config: Config, folder: RunFolder) -> None:
    """Run one stage as the pipeline does, without its manifest."""
    from transformers import set_seed

    from rlhf.launch.runtime import Runtime
    from rlhf.run.pipeline import stage_functions

    set_seed(config.seed)
    with Tracker.open(folder.root, config.tracking, {}, stage) as tracker:
        stage_functions()[stage](config, folder, tracker, Runtime.detect(config.runtime), None)
