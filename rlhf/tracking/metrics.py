"""Every metric that a run logs: its meaning, its unit, its healthy range and what to do outside it.

The tracker refuses a name that is not here, so that no curve stands in a report unexplained. A name that ends in
`<name>` documents a whole prefix, for parts that a user names (reward components) or another library does. The page
docs/metrics.md, W&B's table of metrics and the warnings in the terminal are made from this file. Ranges are rules of
thumb for PPO on language models, wide enough to be left by runs that go wrong only. Nothing is computed here.
"""

from dataclasses import replace

from reward_models.suggest import did_you_mean
from rlhf.tracking.metric import Metric

__all__ = ["METRICS", "Metric", "describe", "find"]

_SLOWER = "Lower {stage}.learning_rate, or set {stage}.warmup_fraction."
_TRAINER = {
    "loss": Metric("Training loss, mean since the last logged step", "nats", best="min"),
    "learning_rate": Metric("Learning rate of the step", "1"),
    "gradient_norm": Metric("Norm of the gradient before clipping", "1", (1e-7, 100), _SLOWER),
    "epoch": Metric("Passes over the training rows so far", "epochs"),
    "tokens": Metric("Training tokens seen so far", "tokens"),
    "validation_loss": Metric("The same loss on the validation rows", "nats", best="min"),
    "seconds/train": Metric("Time of the whole training", "s"),
    "seconds/validation": Metric("Time of one pass over the validation rows", "s"),
    "samples_per_second": Metric("Training rows processed per second", "1/s"),
    "steps_per_second": Metric("Optimizer steps per second", "1/s"),
    "trainer/<name>": Metric("Whatever else transformers' Trainer or TRL logs, under its own name", "as logged"),
}

_SFT = {
    "perplexity": Metric("exp(validation loss): perplexity of the validation responses", "1", best="min"),
    "validation_token_accuracy": Metric("Response tokens that the policy ranks first, validation rows", "share"),
    "validation_entropy": Metric("Entropy of the next-token distribution, validation rows", "nats per token"),
}

_CHANCE = "It ranks no better than a coin: read some pairs, add pairs or epochs, or try another reward.learning_rate."
_REWARD = {
    "accuracy": Metric("Training pairs whose chosen response scores higher", "share", (0.5, 1), _CHANCE, "max"),
    "margin": Metric("Score of the chosen minus score of the rejected response, training pairs", "score", best="max"),
    "mean_score": Metric("Mean score of both responses, training pairs", "score"),
    "min_score": Metric("Lowest score, training pairs", "score"),
    "max_score": Metric("Highest score, training pairs", "score"),
    "validation_accuracy": Metric(
        "Held-out pairs whose chosen response scores higher", "share", (0.55, 1), _CHANCE, "max"
    ),
    "validation_accuracy_low": Metric(
        "Lower end of the accuracy's 95% Wilson interval", "share", (0.5, 1),
        "By these pairs alone it could be a coin: raise reward.data.validation_fraction or add pairs.",
    ),
    "validation_accuracy_high": Metric("Upper end of the accuracy's 95% Wilson interval", "share"),
    "validation_margin": Metric(
        "Score of the chosen minus score of the rejected response, held-out pairs", "score", best="max"
    ),
    "validation_mean_score": Metric("Mean score of both responses, held-out pairs", "score"),
    "validation_min_score": Metric("Lowest score, held-out pairs", "score"),
    "validation_max_score": Metric("Highest score, held-out pairs", "score"),
    "expected_calibration_error": Metric(
        "|sigmoid(margin) - share preferred|, mean over 10 bins, held-out pairs", "share", (0, 0.2),
        "Its margins say more, or less, than its accuracy: train fewer epochs, or add pairs.", "min",
    ),
    "normalisation_mean": Metric("Mean raw score of the SFT policy's samples, subtracted from scores", "raw score"),
    "normalisation_std": Metric(
        "Standard deviation of those raw scores, divides every score", "raw score", (1e-3, None),
        "It scores all responses of the SFT policy alike, and dividing by this makes noise of it: train it longer.",
    ),
}  # fmt: skip

_PPO = {
    "score": Metric("Score of a response, mean over the episodes of the iteration", "score", best="max"),
    "score_std": Metric(
        "Standard deviation of the scores over the episodes", "score", (1e-6, None),
        "All responses earn the same, so there is nothing to learn: look at the rewards, or raise "
        "ppo.rollout.temperature.",
    ),
    "reward": Metric(
        "What is maximised: score minus KL penalty, summed over an episode, mean over episodes", "score", best="max"
    ),
    "components/<name>": Metric(
        "One reward component, unweighted, mean over the episodes to which it applies", "score"
    ),
    "environments/<name>": Metric(
        "Score, scored episodes or response tokens of one of several environments, mean", "its own"
    ),
    "unscored_episodes": Metric(
        "Episodes that no component could score; they stay out of the update", "episodes", (0, 0),
        "A reward failed or answered None for them: see its warnings, and mend the function.",
    ),
    "failed_episodes": Metric(
        "Episodes whose environment failed; they stay out of the update", "episodes", (0, 0),
        "An environment raised, or answered with what is no step: see its warnings, and mend it.",
    ),
    "kl": Metric(
        "log(policy / reference) summed over an episode's sampled tokens, mean over episodes", "nats", (-1, 30),
        "Too far from the reference, which invites responses that only please the reward: raise ppo.kl.coefficient or "
        "lower ppo.learning_rate. Below 0 sampled and trained distribution differ: switch top_k and top_p off.",
    ),
    "kl_coefficient": Metric("Weight of the KL penalty in this iteration", "score per nat"),
    "kl_penalty": Metric("kl_coefficient times KL, subtracted from the score, mean over episodes", "score"),
    "entropy": Metric(
        "-log-prob of the sampled tokens summed over an episode, mean: an estimate of the entropy", "nats",
        (0.05, None),
        "The policy says one thing only: lower ppo.learning_rate, or raise ppo.entropy_coefficient.",
    ),
    "response_tokens": Metric("Sampled tokens of an episode, stop token included, mean", "tokens"),
    "stopped_share": Metric(
        "Episodes whose last response ended by a stop token or stop string", "share", (0.5, 1),
        "Most responses are cut off: raise ppo.rollout.max_response_tokens, or make unfinished ones earn less "
        "(ppo.missing_stop).",
    ),
    "truncated_share": Metric(
        "Episodes that were cut off by the limit on turns", "share", (0, 0.9),
        "Nearly no episode ends by itself: raise ppo.environment.max_turns.",
    ),
    "loss/policy": Metric("Clipped surrogate loss, mean over tokens", "1"),
    "loss/value": Metric("Clipped squared error of the critic, halved, mean over tokens", "score squared", best="min"),
    "approx_kl": Metric(
        "KL from the rollout's policy to the updated one, estimated on the sampled tokens", "nats per token",
        (-0.02, 0.2),
        "The update goes too far: lower ppo.learning_rate or ppo.epochs.",
    ),
    "clip_fraction": Metric(
        "Tokens whose ratio lies outside the clip range and is clipped", "share", (0, 0.4),
        "Much of the update is thrown away: lower ppo.learning_rate or ppo.epochs.",
    ),
    "value_clip_fraction": Metric(
        "Tokens whose value is clipped", "share", (0, 0.6),
        "The critic may not move as far as it has to: raise ppo.value_clip_range, or lower the scale of the score.",
    ),
    "ratio": Metric(
        "New over old probability of a sampled token, mean", "1", (0.8, 1.25),
        "The update goes too far: lower ppo.learning_rate or ppo.epochs.",
    ),
    "ratio_max": Metric("Largest such ratio", "1"),
    "explained_variance": Metric(
        "1 - Var(return - value) / Var(return): 1 is a perfect critic, 0 a constant", "1", (-0.5, 1),
        "The critic predicts worse than a constant: raise ppo.critic.learning_rate or ppo.value_coefficient.", "max",
    ),
    "gradient_norm": Metric(
        "Norm of the gradient before clipping, mean over optimizer steps", "1", (1e-7, 100),
        "Nearly 0: nothing is learnt, see score_std. Large: lower ppo.learning_rate, or bring the score near 1.",
    ),
    "optimizer_steps": Metric("Optimizer steps taken in this iteration", "steps", (1, None), "See skipped_steps."),
    "skipped_steps": Metric(
        "Optimizer steps left out because a gradient was not finite", "steps", (0, 0),
        "Look for huge or infinite rewards, and lower ppo.learning_rate.",
    ),
    "learning_rate": Metric("Learning rate of the iteration", "1"),
    "sampler_logprob_gap": Metric("Largest |sampler's - trainer's log-prob| of a sampled token", "nats"),
    "importance_weight": Metric(
        "Trainer's over sampler's probability of a sampled token, mean", "1", (0.8, 1.25),
        "What was sampled is not what is trained: switch top_k and top_p off, or compute in float32.",
    ),
    "epoch": Metric("Passes over the prompts so far", "epochs"),
    "seconds/rollout": Metric("Time spent sampling and stepping environments", "s"),
    "seconds/score": Metric("Time spent on rewards, reference log-probs and values", "s"),
    "seconds/update": Metric("Time spent on forward and backward passes and optimizer steps", "s"),
    "samples_per_second": Metric("Episodes per second of the iteration", "1/s"),
    "trainer/<name>": Metric("Whatever else transformers' Trainer or TRL logs, under its own name", "as logged"),
}  # fmt: skip

_EVALUATE = {
    "score": Metric("Score of a response to a held-out prompt, mean", "score", best="max"),
    "components/<name>": Metric("One reward component on held-out prompts, unweighted, mean", "score"),
    "win_rate": Metric(
        "Prompts on which the policy after PPO scores higher than the one before; a tie counts half", "share", (0.5, 1),
        "PPO made the policy worse on held-out prompts: train longer, and look at ppo/kl and the worst responses.",
        "max",
    ),
    "kl": Metric(
        "log(policy / policy before PPO) summed over a response, mean", "nats", (-1, 30), "See ppo/kl."
    ),
    "kl_per_token": Metric("The same, summed over all responses and divided by their tokens", "nats per token"),
    "perplexity": Metric("Perplexity of the responses under the policy before PPO", "1"),
    "response_tokens": Metric("Tokens of a response, stop token included, mean", "tokens"),
    "distinct_2": Metric(
        "Different word pairs over all word pairs in the responses", "share", (0.1, 1),
        "Responses repeat each other: raise ppo.kl.coefficient or ppo.entropy_coefficient, or train fewer iterations.",
    ),
    "stopped_share": Metric(
        "Responses that end by a stop token or stop string", "share", (0.5, 1), "See ppo/stopped_share."
    ),
    "prompts": Metric("Held-out prompts", "prompts"),
    "seconds": Metric("Time of the evaluation", "s"),
    "before/<name>": Metric("The quantity evaluate/<name>, of the policy before PPO", "its own"),
    "after/<name>": Metric("The quantity evaluate/<name>, of the policy after PPO", "its own"),
    "difference/<name>": Metric("The quantity evaluate/<name>, after minus before, paired by prompt", "its own"),
}  # fmt: skip

_STAGES = {"sft": _TRAINER | _SFT, "reward": _TRAINER | _REWARD, "ppo": _PPO, "evaluate": _EVALUATE}

METRICS: dict[str, Metric] = {
    f"{stage}/{name}": replace(metric, name=f"{stage}/{name}", remedy=metric.remedy.replace("{stage}", stage))
    for stage, metrics in _STAGES.items()
    for name, metric in metrics.items()
}

_PREFIXES = {name.removesuffix("<name>"): metric for name, metric in METRICS.items() if name.endswith("/<name>")}
_SIDES = {
    "evaluate/before/": "before PPO",
    "evaluate/after/": "after PPO",
    "evaluate/difference/": "after minus before",
}


def find(name: str) -> Metric | None:
    """The metric of a logged name; under a documented prefix, the prefix's. None if there is none.

    What `evaluate/after/kl` is, in which unit, and what is healthy, follows from `evaluate/kl`.

    Args:
        name: For example `ppo/kl` or `ppo/components/politeness`.
    """
    if name in METRICS and not name.endswith("<name>"):
        return METRICS[name]
    for prefix, metric in _PREFIXES.items():
        if name.startswith(prefix) and len(name) > len(prefix):
            return _of_one_side(name, prefix, metric) if prefix in _SIDES else metric
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


def _of_one_side(name: str, prefix: str, metric: Metric) -> Metric:
    quantity = find(f"evaluate/{name.removeprefix(prefix)}")
    if quantity is None:
        return metric
    meaning = f"{quantity.meaning}; {_SIDES[prefix]}"
    if prefix == "evaluate/after/":  # the policy that this run made is what a remedy is for
        return replace(quantity, name=name, meaning=meaning)
    return Metric(meaning, quantity.unit, name=name)
