"""What one seed of a study showed, and what all of them show together. Reads finished run folders; trains nothing."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from reward_models.calibration import PairMetrics
from reward_models.scalar import ScalarRewardModel
from rlhf.config.schema import Config
from rlhf.evaluation.paired import Design, Entry, Floats, Share, means_of, prompt_means, wins_of
from rlhf.files.run_folder import RunFolder
from rlhf.launch.runtime import Runtime
from rlhf.scoring.scorer import load_reward_model
from rlhf.study.judge import component_values, judge_values, last_response, pair_accuracy

__all__ = ["JudgedRun", "judged_run", "pooled"]

Values: TypeAlias = dict[str, tuple[Floats, Floats]]  # "reward_model", "judge" -> (N,) before, (N,) after


@dataclass(frozen=True)
class JudgedRun:
    """One seed.

    Attributes:
        numbers: What study.json says of it. `reward_model` and `judge` are entries of both policies; the difference is
            in standard deviations of that model's scores of responses before.
        prompt_values: "reward_model", "judge" -> (P, 2) means over the samples of each prompt: before, after.
        samples: Every pair of responses with the scores of both models.
    """

    numbers: dict[str, Any]
    prompt_values: dict[str, Floats]
    samples: list[dict[str, Any]]


def judged_run(config: Config, folder: RunFolder, judge_config: Config, judge_folder: RunFolder) -> JudgedRun:
    """Let a seed's judge score the responses of its evaluation.

    Args:
        config: Of the seed's run.
        folder: That run, finished.
        judge_config: Of the judge's run.
        judge_folder: That run, finished.
    """
    assert config.evaluate is not None
    assert config.ppo is not None
    evaluation = json.loads(folder.evaluate.read_text(encoding="utf-8"))
    responses = evaluation["responses"]
    design = Design(evaluation["samples_per_prompt"], config.evaluate.bootstrap_resamples, config.seed)
    judge = load_reward_model(judge_config, judge_folder, Runtime.detect(judge_config.runtime))
    component = "reward_model" if "reward_model" in config.ppo.rewards else "score"
    values: Values = {
        "reward_model": (
            component_values(responses, "before", component),
            component_values(responses, "after", component),
        ),
        "judge": (judge_values(judge, responses, "before"), judge_values(judge, responses, "after")),
    }
    numbers = {
        "seed": config.seed,
        "folder": str(folder.root),
        "judge_folder": str(judge_folder.root),
        "prompts": evaluation["prompts"],
        **{name: means_of(*both, design) for name, both in values.items()},
        "win_rate": wins_of(*values["reward_model"], design),
        "judge_win_rate": wins_of(*values["judge"], design),
        "judge_accuracy": _accuracy(judge, config),
        **_other_metrics(evaluation["metrics"]),
    }
    means = {
        name: np.stack([prompt_means(side, design.samples_per_prompt) for side in both], axis=1)
        for name, both in values.items()
    }
    return JudgedRun(numbers, means, _samples(responses, values))


def pooled(runs: Sequence[JudgedRun], config: Config) -> dict[str, Any]:
    """Mean over seeds, for each prompt first, so that an interval over prompts is that of these seeds' mean.

    It does not say how much another seed may differ; for that, `seeds_above_zero` counts the seeds whose own interval
    lies above 0, and `standard_deviation` is that of the differences over seeds.
    """
    assert config.evaluate is not None
    design = Design(1, config.evaluate.bootstrap_resamples, config.seed)
    gains = {name: _pooled_gain(runs, name, design) for name in ("reward_model", "judge")}
    averaged = ("kl", "length_ratio")
    return {
        **gains,
        "win_rate": _mean([run.numbers["win_rate"]["value"] for run in runs]),
        "judge_win_rate": _mean([run.numbers["judge_win_rate"]["value"] for run in runs]),
        "judge_accuracy": _mean([run.numbers["judge_accuracy"]["value"] for run in runs]),
        **{name: _mean([run.numbers[name] for run in runs]) for name in averaged},
        **{
            name: {side: _mean([run.numbers[name][side] for run in runs]) for side in ("before", "after")}
            for name in ("perplexity", "distinct_2", "stopped_share")
        },
    }


def _pooled_gain(runs: Sequence[JudgedRun], name: str, design: Design) -> dict[str, Any]:
    means = np.mean([run.prompt_values[name] for run in runs], axis=0)  # NaN in one seed leaves the prompt out
    before, after = means.T
    entry: Entry = means_of(before, after, design)
    own = [run.numbers[name] for run in runs]
    differences = [one["difference"] for one in own if one["difference"] is not None]
    return {
        **entry,
        "seeds_above_zero": sum(one["interval"] is not None and one["interval"][0] > 0 for one in own),
        "standard_deviation": float(np.std(differences, ddof=1)) if len(differences) > 1 else None,
    }


def _accuracy(judge: ScalarRewardModel, config: Config) -> Share:
    """Of the judge, on the half of the pairs that the seed's reward model was fitted on and the judge was not."""
    assert config.reward is not None
    metrics: PairMetrics = pair_accuracy(judge, config.reward, config.reward.data)
    return {"value": metrics.accuracy, "interval": [metrics.accuracy_low, metrics.accuracy_high]}


def _other_metrics(metrics: dict[str, Entry]) -> dict[str, Any]:
    before, after = metrics["response_tokens"]["before"], metrics["response_tokens"]["after"]
    assert before is not None
    assert after is not None
    sides = {
        name: {"before": metrics[name]["before"], "after": metrics[name]["after"]}
        for name in ("perplexity", "distinct_2", "stopped_share")
    }
    return {"kl": metrics["kl"]["after"], "length_ratio": after / before, **sides}


def _samples(responses: Sequence[dict[str, Any]], values: Values) -> list[dict[str, Any]]:
    samples = []
    for i, row in enumerate(responses):
        sample = {"prompt": row["prompt"]}
        for k, policy in enumerate(("before", "after")):
            sample[policy] = last_response(row[policy]["messages"])
            sample |= {f"{policy}_{name}": float(both[k][i]) for name, both in values.items()}
        samples.append(sample)
    return samples


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
