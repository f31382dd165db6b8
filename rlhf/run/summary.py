"""What the pipeline prints when it ends: the before/after table of evaluate.json. The report shows more."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rlhf.tracking.text import number, signed


def print_comparison(console: Console, path: Path) -> None:
    """Prints the metrics of both policies, their paired difference and its interval.

    Args:
        console: Where to.
        path: The file that the evaluate stage wrote.
    """
    evaluation = evaluation_facts(path)
    policies: list[str] = evaluation.get("policies", [])
    asked = f"{evaluation.get('prompts', '?')} {evaluation.get('asked', 'held-out prompts')}"
    table = Table(title=f"Before and after, {asked}", title_justify="left")
    table.add_column("metric", overflow="fold", ratio=1, min_width=12)  # long names are broken, never cut
    for policy in policies:
        table.add_column(policy, justify="right", no_wrap=True)
    table.add_column("difference", justify="right")
    table.add_column("95% interval", justify="right")
    for name, entry in evaluation.get("metrics", {}).items():
        interval = entry.get("interval")
        table.add_row(
            name,
            *(number(entry.get(policy)) for policy in policies),
            signed(entry.get("difference")),
            f"{signed(interval[0])} to {signed(interval[1])}" if interval else "",
        )
    console.print(table)
    wins = evaluation.get("win_rate", {})
    if wins.get("value") is not None:
        console.print(f"The policy after PPO scores higher on {100 * wins['value']:.0f}% of the prompts.")


def evaluation_facts(path: Path) -> dict[str, Any]:
    """Metrics, intervals and win rate of evaluate.json, without the responses."""
    evaluation: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return {key: value for key, value in evaluation.items() if key not in ("samples", "responses")}
