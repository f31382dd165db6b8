"""Episodes token by token in the terminal: `rlhf inspect RUN --iteration 3 --worst 1`."""

from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf.results.run import Run
from rlhf.tracking.text import number, signed

__all__ = ["print_episodes"]

_COLUMNS = ("reward", "reward_score", "reward_penalty", "reward_kl", "kl", "logprob", "value", "advantage")


def print_episodes(console: Console, run: Run, episodes: pd.DataFrame) -> None:
    """Prints prompt, response and tokens of episodes; the token with the lowest reward is marked.

    Args:
        console: Where to.
        run: Whose episodes they are.
        episodes: Rows of `run.worst` or `run.best`.
    """
    for _, episode in episodes.iterrows():
        console.print(_head(episode))
        console.print(Text(f"Prompt: {episode['prompt']}"), style="dim")
        console.print(Text(f"Response: {episode['response']}"))
        tokens = run.tokens(episode)
        console.print(_token_table(tokens) if len(tokens) else "No tokens were kept of this episode.")


def _head(episode: "pd.Series[Any]") -> Text:
    parts = [f"{name} {signed(episode[f'reward_{name}'])}" for name in ("penalty", "kl") if _known(episode, name)]
    made_of = f" (score {signed(episode['score'])}, {', '.join(parts)})" if parts else ""
    return Text(
        f"Iteration {episode['iteration']}, prompt {episode['index']}: score {signed(episode['score'])}, "
        f"reward as trained on {signed(episode['reward'])}{made_of}, {episode['length']} tokens, "
        f"stopped by {episode['stop_reason']}",
        style="bold",
    )


def _known(episode: "pd.Series[Any]", part: str) -> bool:
    return bool(pd.notna(episode[f"reward_{part}"]))


def _token_table(tokens: pd.DataFrame) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("token")
    for name in _COLUMNS:
        table.add_column(name.replace("_", " "), justify="right")
    lowest = tokens["reward"].idxmin() if tokens["reward"].notna().any() else None
    for place, token in tokens.iterrows():
        text = repr(token["text"]) if isinstance(token["text"], str) else f"token {token['id']}"
        marked = place == lowest
        style = "bold red" if marked else ""
        shown = [number(token[name] if pd.notna(token[name]) else None) for name in _COLUMNS]
        table.add_row(Text(f"{'>' if marked else ' '} {text}"), *shown, style=style)
    return table
