"""Faults in the formulas: KL coefficient, token rewards, whitening, advantages and losses."""

from ..fault import Fault

_UNDER_MASK = ("advantages::test_oracle_11_nothing_under_the_mask_counts",)

FAULTS = (
    Fault(
        "kl-controller-reversed", "kl.py",
        "1 + error * episodes", "1 - error * episodes",
        "a KL above its target lowers the coefficient", ("kl",),
    ),
    Fault(
        "kl-error-unclipped", "kl.py",
        "min(max(kl / self.target - 1, -0.2), 0.2)", "kl / self.target - 1",
        "one bad rollout throws the coefficient far away", ("kl",),
    ),
    Fault(
        "kl-controller-forgets-episodes", "kl.py",
        "error * episodes / self.horizon", "error / self.horizon",
        "the horizon is in iterations, not in episodes", ("kl",),
    ),
    Fault(
        "kl-sign", "token_rewards.py",
        "- kl_coefficient * kl, kl", "+ kl_coefficient * kl, kl",
        "moving away from the reference is rewarded", ("enumerable::test_oracle_03_soft_bellman_zero",),
    ),
    Fault(
        "kl-direction", "token_rewards.py",
        "kl = torch.where(mask, logprobs - ref_logprobs, 0.0)", "kl = torch.where(mask, ref_logprobs - logprobs, 0.0)",
        "the KL of the other direction, negated", ("token_rewards",),
    ),
    Fault(
        "kl-k3-in-the-reward", "token_rewards.py",
        "kl = torch.where(mask, logprobs - ref_logprobs, 0.0)",
        "kl = torch.where(mask, (ref_logprobs - logprobs).exp() - 1 + logprobs - ref_logprobs, 0.0)",
        "k3 in the reward has another fixed point", ("enumerable::test_oracle_03_soft_bellman_zero",),
    ),
    Fault(
        "kl-under-the-mask", "token_rewards.py",
        "kl = torch.where(mask, logprobs - ref_logprobs, 0.0)", "kl = logprobs - ref_logprobs",
        "padding pays a penalty", ("token_rewards",),
    ),
    Fault(
        "missing-stop-rewarded", "token_rewards.py",
        "torch.where(stopped, scores, scores - value)", "torch.where(stopped, scores, scores + value)",
        "the penalty is added", ("scoring::test_oracle_16_the_reward_table", "token_rewards"),
    ),
    Fault(
        "stop-punished", "token_rewards.py",
        "torch.where(stopped, scores, value)", "torch.where(stopped, value, scores)",
        "responses that stopped lose their score", ("token_rewards",),
    ),
    Fault(
        "mean-over-padding", "masked.py",
        "count = mask.sum()", "count = torch.tensor(mask.numel())",
        "the mean is diluted by padding", ("masked",),
    ),
    Fault(
        "mask-by-multiplication", "masked.py",
        "torch.where(mask, values, 0.0).sum() / count", "(values * mask).sum() / count",
        "NaN times 0 is NaN", ("masked",),
    ),
    Fault(
        "whitening-mean-swapped", "masked.py",
        "whitened if shift_mean else whitened + mean", "whitened + mean if shift_mean else whitened",
        "advantages keep their mean and rewards lose it", ("masked",),
    ),
    Fault(
        "whitening-unbiased", "masked.py",
        "masked_mean(centred**2, mask) + 1e-8", "centred.square().sum() / (mask.sum() - 1) + 1e-8",
        "n - 1 for n: NaN for a single token", ("masked",),
    ),
    Fault(
        "whitening-by-variance", "masked.py",
        "centred * torch.rsqrt(", "centred * torch.reciprocal(",
        "divided by the variance, not by its root", ("masked",),
    ),
    Fault(
        "whitening-without-epsilon", "masked.py",
        "torch.rsqrt(masked_mean(centred**2, mask) + 1e-8)", "torch.rsqrt(masked_mean(centred**2, mask))",
        "equal scores become NaN", ("masked",),
    ),
    Fault(
        "whitening-of-each-episode", "masked.py",
        "mean = masked_mean(values, mask)", "mean = torch.where(mask, values, 0.0).sum(1, True) / mask.sum(1, True)",
        "the mean is each row's own: what tells good episodes from bad ones is gone", ("masked",),
    ),
    Fault(
        "truncated-state-worth-nothing", "advantages.py",
        "torch.where(last == t, inputs.final_values, following)", "torch.where(last == t, 0.0, following)",
        "the value behind a truncated episode is not read",
        ("advantages::test_oracle_18_a_final_value_enters_as_the_value_of_the_next_state",),
    ),
    Fault(
        "final-value-in-the-last-column", "advantages.py",
        "torch.where(last == t, inputs.final_values, following)",
        "torch.where(last == t, inputs.final_values, following) if t + 1 == rewards.shape[1] else following",
        "only the longest episode is bootstrapped", ("advantages",),
    ),
    Fault(
        "gae-value-of-the-same-state", "advantages.py",
        "values[:, t + 1] if t + 1 < rewards.shape[1]", "values[:, t] if t + 1 < rewards.shape[1]",
        "V(s_t) stands for V(s_t+1)", ("advantages",),
    ),
    Fault(
        "gae-forgets-gamma", "advantages.py",
        "inputs.gamma * inputs.gae_lambda * advantage", "inputs.gae_lambda * advantage",
        "later deltas are discounted by lambda alone", ("advantages",),
    ),
    Fault(
        "gae-next-value-undiscounted", "advantages.py",
        "rewards[:, t] + inputs.gamma * following", "rewards[:, t] + following",
        "V(s_t+1) is not discounted", ("advantages",),
    ),
    Fault(
        "gae-values-under-the-mask", "advantages.py",
        "values = torch.where(inputs.mask, inputs.values, 0.0)", "values = inputs.values",
        "what the critic says of padding reaches the returns", _UNDER_MASK,
    ),
    Fault(
        "returns-are-advantages", "advantages.py",
        "return advantages, advantages + values", "return advantages, advantages",
        "the critic learns the advantage", ("advantages",),
    ),
    Fault(
        "rloo-includes-itself", "advantages.py",
        "(sums - totals) / (siblings - 1)", "sums / siblings",
        "the baseline depends on the sample it is subtracted from", ("advantages",),
    ),
    Fault(
        "group-biased-deviation", "advantages.py",
        "/ (siblings - 1)).sqrt()", "/ siblings).sqrt()",
        "not the standard deviation that the paper divides by", ("advantages",),
    ),
    Fault(
        "reinforce-baseline-of-tokens", "advantages.py",
        "baseline = rewards.sum(1).mean()", "baseline = rewards.mean()",
        "the mean reward of a token is subtracted from returns", ("advantages",),
    ),
    Fault(
        "reinforce-without-discount", "advantages.py",
        "running = rewards[:, t] + inputs.gamma * running", "running = rewards[:, t] + running",
        "gamma does nothing", ("advantages",),
    ),
    Fault(
        "ratio-inverted", "losses.py",
        "(new_logprobs - old_logprobs).clamp(", "(old_logprobs - new_logprobs).clamp(",
        "pi_old / pi_new", ("losses",),
    ),
    Fault(
        "log-ratio-unclamped", "losses.py",
        ".clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()", ".exp()",
        "one token overflows the loss", ("losses",),
    ),
    Fault(
        "surrogate-sign", "losses.py",
        "unclipped = -advantages * ratio", "unclipped = advantages * ratio",
        "the surrogate is minimised", ("losses",),
    ),
    Fault(
        "surrogate-optimistic", "losses.py",
        "return torch.maximum(", "return torch.minimum(",
        "the clip holds nothing back", ("losses",),
    ),
    Fault(
        "ratio-clipped-above-only", "losses.py",
        "ratio.clamp(1 - clip_range, 1 + clip_range)", "ratio.clamp(max=1 + clip_range)",
        "bad actions are pushed down without limit", ("losses",),
    ),
    Fault(
        "value-clipped-around-zero", "losses.py",
        "near_old = old_values + (values - old_values).clamp(", "near_old = (values - old_values).clamp(",
        "the clip is around 0, not around the old value", ("losses",),
    ),
    Fault(
        "value-loss-optimistic", "losses.py",
        "return 0.5 * torch.maximum(", "return 0.5 * torch.minimum(",
        "the smaller error counts", ("losses",),
    ),
    Fault(
        "value-loss-doubled", "losses.py",
        "return 0.5 * torch.maximum(", "return torch.maximum(",
        "the coefficient of the value loss means something else", ("losses",),
    ),
    Fault(
        "approximate-kl-k1", "losses.py",
        "0.5 * (new_logprobs - old_logprobs) ** 2", "old_logprobs - new_logprobs",
        "the update's KL may be negative", ("losses",),
    ),
)  # fmt: skip
