"""Faults in what becomes of a rollout: its layout in tensors, its scores, and the numbers that describe it."""

from ..fault import Fault

_TABLE = ("scoring::test_oracle_16_the_reward_table",)
_PLAIN = ("agreement::test_oracle_10_logprobs_are_those_of_the_plain_model",)
_PROCESSES = ("processes",)

FAULTS = (
    Fault(
        "score-one-token-early", "batch.py",
        "torch.tensor(episode.rewards, dtype=torch.float64)[where]",
        "torch.tensor(episode.rewards, dtype=torch.float64)[where - 1]",
        "rewards are read one position before their token", _TABLE,
    ),
    Fault(
        "predicted-by-itself", "batch.py",
        "tokens.grid[row, place - 1]", "tokens.grid[row, place]",
        "a token is read from the state behind it", _PLAIN,
    ),
    Fault(
        "targets-one-early", "batch.py",
        "[row, place],", "[row, place - 1],",
        "each state predicts the token that it has just read", _PLAIN,
    ),
    Fault(
        "final-value-before-the-end", "batch.py",
        "last=tokens.last,", "last=tokens.grid[:, 0],",
        "the value behind an episode is that of its beginning", _PLAIN,
    ),
    Fault(
        "stop-string-is-no-stop", "batch.py",
        'episode.stop_reason != "length"', 'episode.stop_reason == "eos"',
        "a response that ended with a stop string is punished", ("token_rewards",),
    ),
    Fault(
        "limit-is-truncation", "batch.py",
        "[episode.truncated for episode in episodes]", '[episode.stop_reason == "length" for episode in episodes]',
        "an episode that ended at the token limit is bootstrapped",
        ("training::test_a_terminated_task_is_not_bootstrapped",),
    ),
    Fault(
        "groups-by-sample", "batch.py",
        "groups=torch.tensor([episode.index for", "groups=torch.tensor([episode.sample_index for",
        "first samples are compared with first samples", ("scoring::test_group_estimators_need_whole_groups",),
    ),
    Fault(
        "microbatch-shortest-first", "batch.py",
        "key=lambda row: (-lengths[row], row)", "key=lambda row: (lengths[row], row)",
        "a microbatch outgrows its budget: its first row is its shortest", ("batch",),
    ),
    Fault(
        "filler-counts", "batch.py",
        "counts=bool(part))", "counts=True)",
        "a row is learnt twice where a process has fewer microbatches", _PROCESSES,
    ),
    Fault(
        "shares-overlap", "batch.py",
        "ordered[start::world]", "ordered[start:]",
        "processes run rows that others run too", _PROCESSES,
    ),
    Fault(
        "penalty-in-the-last-column", "scoring.py",
        "batch.mask.sum(1) - 1", "batch.mask.shape[1] - 1",
        "short unfinished responses are not punished", ("token_rewards",),
    ),
    Fault(
        "termination-bootstrapped", "scoring.py",
        "bootstrapped = batch.truncated if bootstrap_truncated",
        "bootstrapped = torch.ones_like(batch.truncated) if bootstrap_truncated",
        "a finished episode is given a future", ("training::test_a_terminated_task_is_not_bootstrapped",),
    ),
    Fault(
        "bootstrap-not-asked-for", "scoring.py",
        "torch.where(bootstrapped, batch.final_values, 0.0)", "batch.final_values",
        "every episode has a future, whatever the options say",
        ("training::test_a_terminated_task_is_not_bootstrapped",),
    ),
    Fault(
        "whitened-advantages-keep-their-mean", "scoring.py",
        "shift_mean=True", "shift_mean=False",
        "the mean advantage pushes every token the same way", ("scoring",),
    ),
    Fault(
        "whitened-rewards-lose-their-mean", "scoring.py",
        "shift_mean=False", "shift_mean=True",
        "what is good on the whole and what is bad looks alike", ("scoring",),
    ),
    Fault(
        "reference-is-the-policy", "scoring.py",
        "(batch.ref_logprobs, frozen.logprobs),", "(batch.ref_logprobs, own.logprobs),",
        "the KL is always 0", ("scoring::test_oracle_16_each_token_pays_its_own_kl_and_the_last_one_gets_the_score",),
    ),
    Fault(
        "penalised-kl-forgotten", "scoring.py",
        "batch.mask, kl_coefficient\n", "batch.mask, 0.0\n",
        "the coefficient never reaches the reward", ("enumerable::test_oracle_03_soft_bellman_zero",),
    ),
    Fault(
        "broken-groups-kept", "scoring.py",
        "counts[episode.index] % size == 0", "counts[episode.index] > 1",
        "a group that lost a sample has another baseline than the rest", ("batch",),
    ),
    Fault(
        "every-process-runs-every-row", "scoring.py",
        "WITHOUT_GRADIENTS * budget, rank, world)", "WITHOUT_GRADIENTS * budget)",
        "the sum over processes counts each row as often as there are processes", _PROCESSES,
    ),
    Fault(
        "values-of-one-process", "scoring.py",
        '("logprobs", "values", "ref_logprobs", "final_values")', '("logprobs", "ref_logprobs", "final_values")',
        "values of other processes' rows are 0", _PROCESSES,
    ),
    Fault(
        "kl-of-a-token", "metrics.py",
        "kl = batch.kl.sum(1).mean()", "kl = masked_mean(batch.kl, batch.mask)",
        "the controller's target is in nats per episode, this is per token",
        ("scoring::test_oracle_16_each_token_pays_its_own_kl_and_the_last_one_gets_the_score",),
    ),
    Fault(
        "entropy-sign", "metrics.py",
        "torch.where(batch.mask, -batch.logprobs, 0.0)", "torch.where(batch.mask, batch.logprobs, 0.0)",
        "the reported entropy is negative", ("metrics",),
    ),
    Fault(
        "explained-variance-of-the-values", "metrics.py",
        "(returns - values).var(correction=0) / variance", "values.var(correction=0) / variance",
        "a critic that says nothing explains everything", ("metrics",),
    ),
    Fault(
        "importance-weight-inverted", "metrics.py",
        "batch.logprobs - batch.sampled_logprobs", "batch.sampled_logprobs - batch.logprobs",
        "the sampler's probability over the trainer's", ("agreement::test_oracle_29_importance_weights",),
    ),
    Fault(
        "rows-slip-behind-an-unscored-episode", "metrics.py",
        "            scored += 1\n        rows", "        scored += 1\n        rows",
        "after an episode without a score, the table shows another episode's numbers", ("metrics",),
    ),
)  # fmt: skip
