"""study.md: the numbers of a study as tables, and a few pairs of responses to judge by eye."""

from collections.abc import Sequence
from typing import Any

from rlhf.tracking.text import as_text, number, signed

__all__ = ["study_markdown"]

_PAIRS_SHOWN = 8

_COLUMNS = (
    "seed",
    "reward model: difference (95%)",
    "judge: difference (95%)",
    "wins, reward model",
    "wins, judge",
    "judge's accuracy (95%)",
    "KL (nats)",
    "length ratio",
    "distinct-2",
    "ends by EOS",
)


def study_markdown(study: dict[str, Any], samples: Sequence[dict[str, Any]]) -> str:
    """Write the page.

    Args:
        study: Content of study.json.
        samples: Pairs of responses of the first seed; the first few are shown.
    """
    runs, pooled = study["runs"], study["pooled"]
    lines = [
        f"# After PPO against before on {runs[0]['prompts']} held-out prompts, {_count(len(runs), 'seed')}",
        "",
        "The reward model was fitted on one half of the preference pairs, the judge on the other half; PPO saw only "
        "the reward model. Differences are after minus before, in standard deviations of a model's scores of the "
        "responses before, with a 95% bootstrap interval over prompts. A win is the higher score on a prompt, a tie "
        "counts half. The judge's accuracy is that on the pairs which it was not fitted on. Arrows go from before to "
        "after.",
        "",
        _row(_COLUMNS),
        _row(["---"] * len(_COLUMNS)),
        *(_row(_cells(str(run["seed"]), run)) for run in runs),
        _row(_cells("**pooled**", pooled)),
        "",
        _verdict("reward model", pooled["reward_model"], len(runs)),
        _verdict("judge", pooled["judge"], len(runs)),
        "",
        f"## The first {min(_PAIRS_SHOWN, len(samples))} prompts of seed {runs[0]['seed']}, none left out",
    ]
    for sample in samples[:_PAIRS_SHOWN]:
        lines += ["", _quote(as_text(sample["prompt"]))]
        for policy in ("before", "after"):
            own, judge = signed(sample[f"{policy}_reward_model"]), signed(sample[f"{policy}_judge"])
            said = " ".join(sample[policy].split())
            lines += ["", f"**{policy.capitalize()}** (reward model {own}, judge {judge}): {said}"]
    return "\n".join(lines) + "\n"


def _cells(name: str, run: dict[str, Any]) -> list[str]:
    accuracy = run["judge_accuracy"]
    return [
        name,
        _difference(run["reward_model"]),
        _difference(run["judge"]),
        _share(run["win_rate"]),
        _share(run["judge_win_rate"]),
        _share(accuracy),
        number(run["kl"]),
        number(run["length_ratio"]),
        _arrow(run["distinct_2"]),
        _arrow(run["stopped_share"]),
    ]


def _difference(entry: dict[str, Any]) -> str:
    interval = entry["interval"]
    between = f" ({signed(interval[0])} to {signed(interval[1])})" if interval else ""
    return signed(entry["difference"]) + between


def _share(share: Any) -> str:
    """A share with its interval, or a bare one."""
    value, interval = (share["value"], share["interval"]) if isinstance(share, dict) else (share, None)
    if value is None:
        return number(None)
    return f"{100 * value:.0f}%" + (f" ({100 * interval[0]:.0f} to {100 * interval[1]:.0f}%)" if interval else "")


def _arrow(sides: dict[str, Any]) -> str:
    return f"{number(sides['before'])} \N{RIGHTWARDS ARROW} {number(sides['after'])}"


def _verdict(title: str, pooled: dict[str, Any], seeds: int) -> str:
    deviation = pooled["standard_deviation"]
    spread = f"; standard deviation over seeds {number(deviation)}" if deviation is not None else ""
    above = f"{pooled['seeds_above_zero']} of {_count(seeds, 'seed')}"
    return f"- By the {title}, the interval lies above 0 in {above}{spread}."


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _quote(text: str) -> str:
    return "\n".join(f"> {line}" for line in text.splitlines())
