"""The evaluate stage: the policies before and after PPO answer the same held-out prompts with the same random numbers.

Reads both policy folders and what scores responses; writes evaluate.json, which the report shows. Nothing is trained.
What is measured, and how sure it is, stands in `rlhf.evaluation.compare`. The first process does all of it.
"""

import json
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn
from transformers import AutoConfig, PreTrainedTokenizerBase

from rlhf.config.ppo import RolloutConfig
from rlhf.config.schema import Config
from rlhf.data import Prompt
from rlhf.episodes.episode import Episode
from rlhf.episodes.rehearsal import rehearse
from rlhf.errors import StageError
from rlhf.evaluation.compare import Answers, compare
from rlhf.evaluation.held_out import HeldOut, held_out, held_out_prompts
from rlhf.evaluation.likelihood import response_logprobs
from rlhf.evaluation.paired import Design
from rlhf.evaluation.responses import flat_rows, responses_of, sample_table
from rlhf.files.atomic import write_text
from rlhf.files.run_folder import RunFolder
from rlhf.generation.torch_generator import TorchGenerator
from rlhf.launch.deepspeed import barrier
from rlhf.launch.runtime import Runtime
from rlhf.models.load import load_policy, load_tokenizer, open_config
from rlhf.policies.decoder_only import DecoderOnly
from rlhf.scoring.limits import readable_tokens
from rlhf.scoring.scorer import build_scorer, rehearsal_scorer
from rlhf.stages.base_model import policy_folder
from rlhf.tracking.progress import StageProgress
from rlhf.tracking.tracker import Tracker


class Inputs(NamedTuple):
    """What the stage reads, checked."""

    tokenizer: PreTrainedTokenizerBase
    prompts: list[Prompt] | None  # None: the environment brings its own


def prepare(config: Config, tokenizer: PreTrainedTokenizerBase) -> Inputs:
    """Read and check everything that the stage will need, and rehearse two episodes, before any model is loaded.

    Args:
        config: The configuration.
        tokenizer: The policies'.

    Raises:
        UserError: The prompts, the environment or a reward function cannot be used.
    """
    inputs = Inputs(tokenizer, held_out_prompts(config, tokenizer))
    positions = readable_tokens(config, tokenizer, open_config(config.model, tokenizer))
    for part in held_out(config, tokenizer, rehearsal_scorer(config), inputs.prompts, positions).parts:
        with closing(part.source.environments):
            rehearse(part.source, part.starts, seed=config.seed)
    return inputs


def run(
    config: Config, folder: RunFolder, tracker: Tracker, runtime: Runtime, inputs: Inputs | None = None
) -> dict[str, Any]:
    """Compare the policies, write `folder.evaluate`; return what the manifest keeps.

    Args:
        config: The configuration.
        folder: Holds both policies and the reward model; the result goes there.
        tracker: Gets the numbers.
        runtime: Where models compute.
        inputs: From `prepare`, which is called now if there are none.

    Raises:
        StageError: A stage that this one reads has not run, or nothing scores the responses.
    """
    assert config.evaluate is not None, "the pipeline runs configured stages only"
    if runtime.is_main_process:
        started = time.monotonic()
        comparison = _Comparison.load(config, folder, runtime, inputs)
        before, after = comparison.answers(tracker.progress)
        metrics, win_rate = compare(before, after, comparison.design())
        lost = {"before": _failed(before.episodes), "after": _failed(after.episodes)}
        result = {**comparison.summary(), "failed_episodes": lost, "metrics": metrics, "win_rate": win_rate}
        result["samples"] = sample_table(before.episodes, after.episodes, config.evaluate.table_rows)
        result["responses"] = responses_of(before, after)
        _write(result, folder.evaluate)
        tracker.log({**_curve_points(result), "evaluate/seconds": time.monotonic() - started}, step=0)
        tracker.log_table("evaluate/samples", flat_rows(result["samples"]))
    barrier()
    result = json.loads(folder.evaluate.read_text(encoding="utf-8"))
    return {"prompts": result["prompts"], "score": result["metrics"]["score"], "win_rate": result["win_rate"]}


@dataclass(frozen=True)
class _Comparison:
    """What both policies share: tokenizer, environments, episodes to play, and how responses are sampled."""

    config: Config
    folder: RunFolder
    runtime: Runtime
    tokenizer: PreTrainedTokenizerBase
    held_out: HeldOut

    @classmethod
    def load(cls, config: Config, folder: RunFolder, runtime: Runtime, inputs: Inputs | None) -> "_Comparison":
        """Load everything but the policies."""
        policy_folder(config, folder)  # says so now if the SFT stage has not run
        if not (folder.ppo / "config.json").is_file():
            raise StageError(f"{folder.ppo} has no model yet: run `rlhf ppo` first, or `rlhf run` for all stages")
        tokenizer, prompts = inputs or prepare(config, load_tokenizer(config.model, folder=folder.ppo))
        if prompts is not None:
            print(f"evaluate: {len(prompts)} held-out prompts", flush=True)
        scorer = build_scorer(config, folder, runtime)
        positions = readable_tokens(config, tokenizer, AutoConfig.from_pretrained(folder.ppo))
        asked = held_out(config, tokenizer, scorer, prompts, positions)
        return cls(config, folder, runtime.for_model(config.model), tokenizer, asked)

    def answers(self, progress: StageProgress) -> tuple[Answers, Answers]:
        """Let both policies answer, and ask both how likely the answers are."""
        progress.start(total=5)
        progress.note("the policy before PPO answers")
        before = self._load(policy_folder(self.config, self.folder))
        first = self._play(before, progress)
        progress.update(1)
        progress.note("the policy after PPO answers")
        after = self._load(self.folder.ppo)
        second = self._play(after, progress)
        progress.update(2)
        progress.note("log-probabilities")
        temperature = self.sampling().temperature
        (own,) = self._logprobs(after, second, temperature)
        progress.update(3)
        # Perplexity is the model's own, without temperature.
        earlier, plain = self._logprobs(before, second, temperature, 1.0)
        progress.update(4)
        (first_plain,) = self._logprobs(before, first, 1.0)
        progress.update(5)
        # log-ratio = log pi_after - log pi_before, on what the policy after said itself; before it is 0.
        unchanged = np.where(np.isnan(first_plain), np.nan, 0.0)
        return Answers(first, unchanged, first_plain), Answers(second, own - earlier, plain)

    def design(self) -> Design:
        """How answers are grouped and intervals made."""
        section = self.config.evaluate
        assert section is not None
        return Design(section.samples_per_prompt, section.bootstrap_resamples, self.config.seed)

    def sampling(self) -> RolloutConfig:
        """How responses are drawn: as in PPO's rollouts, unless `evaluate` says otherwise."""
        assert self.config.evaluate is not None
        assert self.config.ppo is not None
        rollout = self.config.ppo.rollout
        return rollout.model_copy(update={"temperature": self.config.evaluate.temperature or rollout.temperature})

    def summary(self) -> dict[str, Any]:
        """What was compared, and what reward functions failed on."""
        section = self.config.evaluate
        assert section is not None
        return {
            "prompts": self.held_out.prompts,
            "asked": self.held_out.asked,
            "policies": ["before", "after"],
            "samples_per_prompt": self.design().samples_per_prompt,
            "seed": self.config.seed,
            "temperature": self.sampling().temperature,
            "max_response_tokens": section.max_response_tokens or self.sampling().max_response_tokens,
            "failures": self.held_out.failures,
        }

    def _load(self, folder: Path | None) -> nn.Module:
        policy: nn.Module = load_policy(self.config.model, self.tokenizer, folder=folder, seed=self.config.seed)
        return policy.to(self.runtime.device).eval()

    def _play(self, policy: nn.Module, progress: StageProgress) -> list[Episode]:
        stop = (int(self.tokenizer.eos_token_id),)
        decode, count = self.tokenizer.decode, progress.count_tokens
        generator = TorchGenerator(policy, self.sampling(), stop, decode, self.runtime, on_tokens=count)
        generator.update()
        return self.held_out.play(generator, self.config.seed)

    def _logprobs(self, policy: nn.Module, episodes: Sequence[Episode], *temperatures: float) -> NDArray[np.float64]:
        assert self.config.ppo is not None
        return response_logprobs(
            DecoderOnly(policy, self.runtime),
            episodes,
            self.runtime.device,
            temperatures=temperatures,
            microbatch_tokens=self.config.ppo.microbatch_tokens,
        )


def _failed(episodes: Sequence[Episode]) -> int:
    return sum(episode.failure is not None for episode in episodes)


def _curve_points(result: dict[str, Any]) -> dict[str, float]:
    """The numbers under their logged names; what could not be computed is left out."""
    points = {
        f"evaluate/{side}/{name}": entry[side]
        for name, entry in result["metrics"].items()
        for side in ("before", "after", "difference")
    }
    points |= {"evaluate/win_rate": result["win_rate"]["value"], "evaluate/prompts": result["prompts"]}
    return {name: value for name, value in points.items() if value is not None}


def _write(result: dict[str, Any], path: Path) -> None:
    write_text(path, json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False, default=str) + "\n")
