"""Every metric that a run logs: its name, its meaning and its unit.

The tracker refuses a name that is not here, so that no curve stands in a report unexplained. A name that ends in
`<name>` documents a whole prefix, for parts that a user names (reward components) or another library does.
This file describes; nothing is computed here.
"""

from dataclasses import dataclass

from reward_models.suggest import did_you_mean

__all__ = ["METRICS", "Metric", "describe", "find"]


@dataclass(frozen=True)
class Metric:
    """One logged quantity.

    Attributes:
        name: `stage/quantity`; a trailing `<name>` stands for anything.
        meaning: What is measured, over what.
        unit: The unit; "1" for a plain number, "share" for a fraction between 0 and 1.
    """

    name: str
    meaning: str
    unit: str


_TRAINER = {
    "loss": ("Training loss, mean since the last logged step", "nats"),
    "learning_rate": ("Learning rate of the step", "1"),
    "gradient_norm": ("Norm of the gradient before clipping", "1"),
    "epoch": ("Passes over the training rows so far", "epochs"),
    "tokens": ("Training tokens seen so far", "tokens"),
    "validation_loss": ("The same loss on the validation rows", "nats"),
    "seconds/train": ("Time of the whole training", "s"),
    "seconds/validation": ("Time of one pass over the validation rows", "s"),
    "samples_per_second": ("Training rows processed per second", "1/s"),
    "steps_per_second": ("Optimizer steps per second", "1/s"),
    "trainer/<name>": ("Whatever else transformers' Trainer or TRL logs, under its own name", "as logged"),
}

_SFT = {
    "perplexity": ("exp(validation loss): perplexity of the validation responses", "1"),
    "validation_token_accuracy": ("Response tokens that the policy ranks first, validation rows", "share"),
    "validation_entropy": ("Entropy of the next-token distribution, validation rows", "nats per token"),
}

_REWARD = {
    "accuracy": ("Training pairs whose chosen response scores higher", "share"),
    "margin": ("Score of the chosen minus score of the rejected response, training pairs", "score"),
    "mean_score": ("Mean score of both responses, training pairs", "score"),
    "min_score": ("Lowest score, training pairs", "score"),
    "max_score": ("Highest score, training pairs", "score"),
    "validation_accuracy": ("Held-out pairs whose chosen response scores higher", "share"),
    "validation_accuracy_low": ("Lower end of the accuracy's 95% Wilson interval", "share"),
    "validation_accuracy_high": ("Upper end of the accuracy's 95% Wilson interval", "share"),
    "validation_margin": ("Score of the chosen minus score of the rejected response, held-out pairs", "score"),
    "validation_mean_score": ("Mean score of both responses, held-out pairs", "score"),
    "validation_min_score": ("Lowest score, held-out pairs", "score"),
    "validation_max_score": ("Highest score, held-out pairs", "score"),
    "expected_calibration_error": ("|sigmoid(margin) - share preferred|, mean over 10 bins, held-out pairs", "share"),
    "normalisation_mean": ("Mean raw score of the SFT policy's samples, subtracted from every score", "raw score"),
    "normalisation_std": ("Standard deviation of those raw scores, divides every score", "raw score"),
}

_PPO = {
    "score": ("Score of a response, mean over the episodes of the iteration", "score"),
    "score_std": ("Standard deviation of the scores over the episodes", "score"),
    "reward": ("What is maximised: score minus KL penalty, summed over an episode, mean over episodes", "score"),
    "components/<name>": ("One reward component, unweighted, mean over the episodes to which it applies", "score"),
    "environments/<name>": (
        "Score, scored episodes or response tokens of one of several environments, mean",
        "its own",
    ),
    "unscored_episodes": ("Episodes that no component could score; they stay out of the update", "episodes"),
    "failed_episodes": ("Episodes whose environment failed; they stay out of the update", "episodes"),
    "kl": ("log(policy / reference) summed over an episode's sampled tokens, mean over episodes", "nats"),
    "kl_coefficient": ("Weight of the KL penalty in this iteration", "score per nat"),
    "kl_penalty": ("kl_coefficient times KL, subtracted from the score, mean over episodes", "score"),
    "entropy": ("-log-prob of the sampled tokens summed over an episode, mean: an estimate of the entropy", "nats"),
    "response_tokens": ("Sampled tokens of an episode, stop token included, mean", "tokens"),
    "stopped_share": ("Episodes whose last response ended by a stop token or stop string", "share"),
    "truncated_share": ("Episodes that were cut off by the limit on turns", "share"),
    "loss/policy": ("Clipped surrogate loss, mean over tokens", "1"),
    "loss/value": ("Clipped squared error of the critic, halved, mean over tokens", "score squared"),
    "approx_kl": ("KL from the rollout's policy to the updated one, estimated on the sampled tokens", "nats per token"),
    "clip_fraction": ("Tokens whose ratio lies outside the clip range and is clipped", "share"),
    "value_clip_fraction": ("Tokens whose value is clipped", "share"),
    "ratio": ("New over old probability of a sampled token, mean", "1"),
    "ratio_max": ("Largest such ratio", "1"),
    "explained_variance": ("1 - Var(return - value) / Var(return): 1 is a perfect critic, 0 a constant", "1"),
    "gradient_norm": ("Norm of the gradient before clipping, mean over optimizer steps", "1"),
    "optimizer_steps": ("Optimizer steps taken in this iteration", "steps"),
    "skipped_steps": ("Optimizer steps left out because a gradient was not finite", "steps"),
    "learning_rate": ("Learning rate of the iteration", "1"),
    "sampler_logprob_gap": ("Largest |sampler's - trainer's log-prob| of a sampled token", "nats"),
    "importance_weight": ("Trainer's over sampler's probability of a sampled token, mean", "1"),
    "epoch": ("Passes over the prompts so far", "epochs"),
    "seconds/rollout": ("Time spent sampling and stepping environments", "s"),
    "seconds/score": ("Time spent on rewards, reference log-probs and values", "s"),
    "seconds/update": ("Time spent on forward and backward passes and optimizer steps", "s"),
    "samples_per_second": ("Episodes per second of the iteration", "1/s"),
    "trainer/<name>": ("Whatever else transformers' Trainer or TRL logs, under its own name", "as logged"),
}

_EVALUATE = {
    "score": ("Score of a response to a held-out prompt, mean", "score"),
    "components/<name>": ("One reward component on held-out prompts, unweighted, mean", "score"),
    "win_rate": ("Prompts on which the policy after PPO scores higher than the one before; a tie counts half", "share"),
    "kl": ("log(policy / policy before PPO) summed over a response, mean", "nats"),
    "kl_per_token": ("The same, summed over all responses and divided by their tokens", "nats per token"),
    "perplexity": ("Perplexity of the responses under the policy before PPO", "1"),
    "response_tokens": ("Tokens of a response, stop token included, mean", "tokens"),
    "distinct_2": ("Different word pairs over all word pairs in the responses", "share"),
    "stopped_share": ("Responses that end by a stop token or stop string", "share"),
    "prompts": ("Held-out prompts", "prompts"),
    "seconds": ("Time of the evaluation", "s"),
    "before/<name>": ("The quantity evaluate/<name>, of the policy before PPO", "its own"),
    "after/<name>": ("The quantity evaluate/<name>, of the policy after PPO", "its own"),
    "difference/<name>": ("The quantity evaluate/<name>, after minus before, paired by prompt", "its own"),
}

_STAGES = {"sft": _TRAINER | _SFT, "reward": _TRAINER | _REWARD, "ppo": _PPO, "evaluate": _EVALUATE}

METRICS: dict[str, Metric] = {
    f"{stage}/{name}": Metric(f"{stage}/{name}", meaning, unit)
    for stage, metrics in _STAGES.items()
    for name, (meaning, unit) in metrics.items()
}

_PREFIXES = {name.removesuffix("<name>"): metric for name, metric in METRICS.items() if name.endswith("/<name>")}


def find(name: str) -> Metric | None:
    """The metric of a logged name; under a documented prefix, the prefix's. None if there is none.

    Args:
        name: For example `ppo/kl` or `ppo/components/politeness`.
    """
    if name in METRICS and not name.endswith("<name>"):
        return METRICS[name]
    for prefix, metric in _PREFIXES.items():
        if name.startswith(prefix) and len(name) > len(prefix):
            return metric
    return None


def describe(name: str) -> Metric:
    """Like `find`, for those who are about to log.

    Raises:
        ValueError: The name is neither documented nor under a documented prefix.
    """
    metric = find(name)
    if metric is None:
        meant = did_you_mean(name, METRICS)
        raise ValueError(
            f"unknown metric {name!r}{'; ' + meant if meant else '.'} Describe it in rlhf/tracking/metrics.py before "
            "logging it"
        )
    return metric
