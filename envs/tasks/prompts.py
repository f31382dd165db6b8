"""`rlhf/Prompts-v0`: one prompt, one response, and the episode is over.

The environment of plain RLHF. Its own reward is 0: responses are scored by the reward model and reward functions that
`envs.vector` calls with the prompt, the response and the row's columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from envs.base import Opening, Reply, RewardSource, TextEnv, Turns
from envs.errors import TextEnvError
from reward_models.chat import Text, to_messages
from reward_models.errors import ChatFormatError

# A reward function is called as reward(prompts=..., completions=..., completion_ids=..., **columns).
RESERVED_COLUMNS = ("prompts", "completions", "completion_ids")

DEFAULT_PROMPTS = (
    "My order says delivered, but nothing is at my door. Can you help?",
    "How do I change the email address on my account?",
    "You charged me for a plan that I cancelled in spring.",
    "The lamp I got has a crack in its glass. What are my options?",
    "Is it possible to pick my parcel up myself instead of waiting at home?",
    "Your app signs me out every morning, and it is getting on my nerves.",
    "Just wanted to say that your colleague on the phone was lovely yesterday.",
    "Can I still add a second pair of socks to the order from this morning?",
)


class CheckedPrompts(Sequence[object]):
    """Rows that have been checked. Many environments may share them, and none of them checks again.

    Args:
        rows: A row is a string, or a mapping with `prompt` (a string, or messages that do not end with the assistant's)
            and any further columns. They are not copied.

    Raises:
        TextEnvError: There are no rows, or a row is malformed; the message names it.
    """

    def __init__(self, rows: Sequence[object]) -> None:
        if isinstance(rows, str | Mapping) or not isinstance(rows, Iterable) or not hasattr(rows, "__len__"):
            raise TextEnvError(
                f"prompts must be a list of rows, got {type(rows).__name__}; wrap a single prompt in a list."
            )
        if not len(rows):
            raise TextEnvError("prompts is empty; at least one row is needed.")
        for index, row in enumerate(rows):
            _parse_row(row, index)
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return self._rows[index]


class PromptsEnv(TextEnv):
    """One response to one prompt; reward 0.0, terminated.

    Args:
        prompts: Rows, as `CheckedPrompts` takes them, or such; not copied.

    Raises:
        TextEnvError: There are no rows, or a row is malformed; the message names it.
    """

    turns: ClassVar[Turns] = "one"
    reward_source: ClassVar[RewardSource] = "components"

    def __init__(self, prompts: Sequence[object] = DEFAULT_PROMPTS) -> None:
        super().__init__()
        self._rows = prompts if isinstance(prompts, CheckedPrompts) else CheckedPrompts(prompts)

    @property
    def num_rows(self) -> int:
        """Number of prompts."""
        return len(self._rows)

    def open_row(self, index: int) -> Opening:
        """Begin with prompt `index`."""
        return _parse_row(self._rows[index], index)

    def reply(self, response: str) -> Reply:
        """End the episode, whatever the response."""
        return Reply(message=None, reward=0.0, terminated=True)


def _parse_row(row: object, index: int) -> Opening:
    if isinstance(row, str):
        row = {"prompt": row}
    if not isinstance(row, Mapping):
        raise TextEnvError(
            f"prompts[{index}] is {type(row).__name__} {row!r}; a row is a string, or a mapping with the key 'prompt'."
        )
    if "prompt" not in row:
        raise TextEnvError(f"prompts[{index}] has no 'prompt'; its keys are {sorted(map(str, row))}.")
    taken = [name for name in RESERVED_COLUMNS if name in row]
    if taken:
        raise TextEnvError(
            f"prompts[{index}] has a column {taken[0]!r}, which is an argument of reward functions; rename it."
        )
    columns = {str(name): value for name, value in row.items() if name != "prompt"}
    return Opening(prompt=_checked_prompt(row["prompt"], index), columns=columns)


def _checked_prompt(prompt: Text, index: int) -> Text:
    try:
        last = to_messages(prompt)[-1]
    except ChatFormatError as error:
        raise TextEnvError(f"prompts[{index}]['prompt'] is neither text nor messages: {error}") from error
    if last["role"] == "assistant":
        raise TextEnvError(
            f"prompts[{index}]['prompt'] ends with a message of the assistant, but the policy speaks next. "
            "Remove that message, or add the user's answer to it."
        )
    if not last["content"].strip():
        raise TextEnvError(
            f"prompts[{index}]['prompt'] ends with an empty message {last['content']!r}; remove the row."
        )
    return prompt
