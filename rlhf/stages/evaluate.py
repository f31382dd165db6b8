"""The evaluate stage: SFT policy and PPO policy answer the same held-out prompts with the same random numbers.

Reads both policy folders and what scores responses; writes evaluate.json, which the report shows. Nothing is trained.
What is measured, and how sure it is, stands in `rlhf.evaluation.compare`. The first process does all of it.
"""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import AutoConfig, PreTrainedTokenizerBase

from rlhf.config.schema import Config
from rlhf.episodes.episode import Episode
from rlhf.episodes.rollout import EnvironmentSource, Start
from rlhf.errors import StageError
from rlhf.evaluation.compare import Answers, compare
from rlhf.evaluation.held_out import environment_source, held_out_prompts, plan_starts
from rlhf.evaluation.likelihood import response_logprobs
from rlhf.evaluation.paired import Design
from rlhf.evaluation.responses import flat_rows, responses_of, sample_table
from rlhf.files.run_folder import RunFolder
from rlhf.generation.rollout_policy import RolloutPolicy
from rlhf.generation.sampler import Sampler, SamplingParameters
from rlhf.launch.deepspeed import barrier, is_main_process
from rlhf.models.load import load_policy, load_tokenizer
from rlhf.models.precision import uses_bfloat16
from rlhf.scoring.scorer import build_scorer
from rlhf.stages.base_model import policy_folder
from rlhf.tracking.progress import StageProgress
from rlhf.tracking.tracker import Tracker

__all__ = ["run"]

# Names the noise of an evaluation. Training counts from 0, so no number that it drew is drawn here.
_ITERATION = -1


def run(config: Config, folder: RunFolder, tracker: Tracker) -> dict[str, Any]:
    """Compare the policies, write `folder.evaluate`; return what the manifest keeps.

    Raises:
        StageError: A stage that this one reads has not run, or nothing scores the responses.
    """
    assert config.evaluate is not None, "the pipeline runs configured stages only"
    if is_main_process():
        started = time.monotonic()
        comparison = _Comparison.prepare(config, folder)
        sft, ppo = comparison.answers()
        metrics, win_rate = compare(sft, ppo, comparison.design())
        result = {**comparison.summary(), "metrics": metrics, "win_rate": win_rate}
        result["samples"] = sample_table(sft.episodes, ppo.episodes, config.evaluate.table_rows)
        result["responses"] = responses_of(sft, ppo)
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
    tokenizer: PreTrainedTokenizerBase
    source: EnvironmentSource
    starts: list[Start]

    @classmethod
    def prepare(cls, config: Config, folder: RunFolder) -> "_Comparison":
        """Load everything but the policies."""
        policy_folder(config, folder)  # says so now if the SFT stage has not run
        if not (folder.ppo / "config.json").is_file():
            raise StageError(f"{folder.ppo} has no model yet: run `rlhf ppo` first, or `rlhf run` for all stages")
        tokenizer = load_tokenizer(config.model, folder=folder.ppo)
        scorer = build_scorer(config, folder)
        prompts = held_out_prompts(config, tokenizer)
        source = environment_source(config, tokenizer, scorer, prompts, _positions(folder.ppo))
        return cls(config, folder, tokenizer, source, plan_starts(source, config))

    def answers(self) -> tuple[Answers, Answers]:
        """Let both policies answer, and ask both how likely the answers are."""
        with StageProgress("evaluate") as progress:
            progress.start(total=5)
            progress.note("the SFT policy answers")
            sft = self._load(policy_folder(self.config, self.folder))
            sft_episodes = self._play(sft)
            progress.update(1)
            progress.note("the PPO policy answers")
            ppo = self._load(self.folder.ppo)
            ppo_episodes = self._play(ppo)
            progress.update(2)
            progress.note("log-probabilities")
            temperature = self.sampling().temperature
            (own,) = self._logprobs(ppo, ppo_episodes, temperature)
            progress.update(3)
            # Perplexity is the model's own, without temperature.
            before, plain = self._logprobs(sft, ppo_episodes, temperature, 1.0)
            progress.update(4)
            (sft_plain,) = self._logprobs(sft, sft_episodes, 1.0)
            progress.update(5)
        # log-ratio = log pi_PPO - log pi_SFT, on what the PPO policy said itself; for the SFT policy it is 0.
        return Answers(sft_episodes, np.zeros(len(sft_episodes)), sft_plain), Answers(ppo_episodes, own - before, plain)

    def design(self) -> Design:
        """How answers are grouped and intervals made."""
        section = self.config.evaluate
        assert section is not None
        return Design(section.samples_per_prompt, section.bootstrap_resamples, self.config.seed)

    def sampling(self) -> SamplingParameters:
        """How responses are drawn: as in PPO's rollouts, unless `evaluate` says otherwise."""
        assert self.config.evaluate is not None
        assert self.config.ppo is not None
        rollout = self.config.ppo.rollout
        return SamplingParameters(
            stop_token_ids=(int(self.tokenizer.eos_token_id),),
            temperature=self.config.evaluate.temperature or rollout.temperature,
            top_k=rollout.top_k,
            top_p=rollout.top_p,
            stop_strings=tuple(rollout.stop_strings),
            batch_size=rollout.batch_size,
        )

    def summary(self) -> dict[str, Any]:
        """What was compared, and what reward functions failed on."""
        return {
            "prompts": len({start.index for start in self.starts}),
            "policies": ["sft", "ppo"],
            "samples_per_prompt": self.design().samples_per_prompt,
            "seed": self.config.seed,
            "temperature": self.sampling().temperature,
            "max_response_tokens": self.source.lengths.max_response_tokens,
            "failures": dict(self.source.environments.failures),
        }

    def _load(self, folder: Path | None) -> nn.Module:
        """Load a policy as the rollouts use it: trunk in the configured precision, output layer in float32."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        policy = load_policy(self.config.model, self.tokenizer, folder=folder, seed=self.config.seed).to(device)
        return RolloutPolicy(policy.eval(), bf16=uses_bfloat16(self.config.model), sharded=False).refresh()

    def _play(self, policy: nn.Module) -> list[Episode]:
        sampler = Sampler(policy, self.sampling(), self.tokenizer.decode)
        return self.source.collect(sampler, self.starts, seed=self.config.seed, iteration=_ITERATION)

    def _logprobs(self, policy: nn.Module, episodes: Sequence[Episode], *temperatures: float) -> NDArray[np.float64]:
        assert self.config.ppo is not None
        budget = self.config.ppo.microbatch_tokens
        return response_logprobs(policy, episodes, temperatures=temperatures, microbatch_tokens=budget)


def _positions(folder: Path) -> int | None:
    """How many tokens the saved policy has positions for; None if its config does not say."""
    positions: int | None = getattr(AutoConfig.from_pretrained(folder), "max_position_embeddings", None)
    return positions


def _curve_points(result: dict[str, Any]) -> dict[str, float]:
    """The numbers under their logged names; what could not be computed is left out."""
    points = {
        f"evaluate/{side}/{name}": entry[side]
        for name, entry in result["metrics"].items()
        for side in ("sft", "ppo", "difference")
    }
    points |= {"evaluate/win_rate": result["win_rate"]["value"], "evaluate/prompts": result["prompts"]}
    return {name: value for name, value in points.items() if value is not None}


def _write(result: dict[str, Any], path: Path) -> None:
    """Write the file whole or not at all."""
    unfinished = path.with_name(f"{path.name}.tmp")
    text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False, default=str)
    unfinished.write_text(text + "\n", encoding="utf-8")
    os.replace(unfinished, path)
