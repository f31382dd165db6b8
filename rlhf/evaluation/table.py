"""What `rlhf evaluate --policy` prints: one policy's numbers with their intervals, and a line for each group."""

from typing import Any

from rich.console import Console
from rich.table import Table

from rlhf.tracking.text import number

__all__ = ["print_policy"]

_SHOWN_OF_GROUPS = ("score", "avg@", "pass@", "response_tokens")


def print_policy(console: Console, result: dict[str, Any]) -> None:
    """Print the metrics of a policy.

    Args:
        console: Where to.
        result: What `rlhf.stages.evaluate_policy` returned.
    """
    samples = result["samples_per_prompt"]
    each = f", {samples} responses each" if samples > 1 else ""
    console.print(f"{result['policy']}: {result['prompts']} {result['asked']}{each}")
    table = Table()
    table.add_column("metric")
    for column in ("value", "95% interval", "prompts"):
        table.add_column(column, justify="right")
    for name, entry in result["metrics"].items():
        table.add_row(name, number(entry["value"]), _interval(entry), str(entry["prompts"]))
    console.print(table)
    if result["groups"]:
        console.print(_group_table(result["groups"]))
    if result["failed_episodes"]:
        console.print(f"{result['failed_episodes']} episodes failed in their environment and count nowhere.")


def _group_table(groups: dict[str, dict[str, Any]]) -> Table:
    table = Table(title="By group", title_justify="left")
    names = [name for name in next(iter(groups.values())) if name.startswith(_SHOWN_OF_GROUPS)]
    table.add_column("group")
    for column in ("prompts", *names):
        table.add_column(column, justify="right")
    for group, metrics in groups.items():
        cells = [f"{number(metrics[name]['value'])} ({_interval(metrics[name])})" for name in names]
        table.add_row(group, str(metrics["score"]["prompts"]), *cells)
    return table


def _interval(entry: dict[str, Any]) -> str:
    interval = entry["interval"]
    return f"{number(interval[0])} to {number(interval[1])}" if interval else ""
