"""The columns of a rollout file, with their types, and files of earlier versions. docs/rollouts.md explains them.

A file says its version in its metadata; one without a version is of version 1. Nothing is opened or written here.
"""

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from rlhf.errors import StageError

__all__ = [
    "COLUMNS",
    "COMPONENT_PREFIX",
    "NESTED_COLUMNS",
    "TOKEN_FIELDS",
    "VERSION",
    "schema_of",
    "upgraded",
    "version_of",
]

VERSION = 2
_VERSION_KEY = b"rlhf.rollouts.version"

COMPONENT_PREFIX = "component/"

TOKEN_FIELDS: dict[str, pa.DataType] = {
    "id": pa.int32(),
    "text": pa.string(),  # joined, they are the turn's text; a character of several tokens stands on its last one
    "turn": pa.int32(),  # of the conversation, from 1
    "sampled_logprob": pa.float32(),  # nats, by the sampler
    "logprob": pa.float32(),  # nats, by the policy before the update
    "ref_logprob": pa.float32(),  # nats, by the reference policy
    "kl": pa.float32(),  # logprob - ref_logprob
    "reward_score": pa.float32(),  # from reward components and environment
    "reward_penalty": pa.float32(),  # ppo.missing_stop
    "reward_kl": pa.float32(),  # - kl_coefficient * kl
    "reward": pa.float32(),  # as trained on: the sum of the three, whitened if ppo.whiten_rewards
    "value": pa.float32(),
    "advantage": pa.float32(),
    "return": pa.float32(),  # what the critic should have said
}

COLUMNS: dict[str, pa.DataType] = {
    "iteration": pa.int64(),  # from 1
    "index": pa.int64(),  # which prompt, from 0: the row of the data
    "sample_index": pa.int64(),  # which of several samples of that prompt, from 0
    "environment": pa.string(),  # where a run has several
    "prompt": pa.string(),
    "response": pa.string(),  # several turns with an empty line between them
    "score": pa.float64(),
    "reward_penalty": pa.float64(),  # these three are summed over the response
    "reward_kl": pa.float64(),
    "reward": pa.float64(),
    "kl": pa.float64(),  # nats, summed over the response
    "length": pa.int64(),  # sampled tokens
    "stop_reason": pa.string(),
    "terminated": pa.bool_(),
    "truncated": pa.bool_(),
    # turn 0 is the prompt; turn k is response k and what the environment said behind it
    "messages": pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("turn", pa.int32())])),
    "tokens": pa.list_(pa.struct(list(TOKEN_FIELDS.items()))),  # the policy's own
    "token_ids": pa.list_(pa.int32()),  # the whole conversation as the model read it
    "response_mask": pa.list_(pa.bool_()),  # True where such a token is the policy's own
}
NESTED_COLUMNS = ("messages", "tokens", "token_ids", "response_mask")

# Version 1 kept a JSON list in a string for each of these; how the fields of a token are called now.
_VERSION_1_TOKENS = {
    "id": "tokens",
    "logprob": "logprobs",
    "ref_logprob": "ref_logprobs",
    "reward": "rewards",
    "value": "values",
    "advantage": "advantages",
}


def schema_of(components: list[str]) -> pa.Schema:
    """The schema of a file whose rows have these component columns, `component/NAME`."""
    types = COLUMNS | {name: pa.float64() for name in components}
    flat = {name: type_ for name, type_ in types.items() if name not in NESTED_COLUMNS}
    ordered = flat | {name: COLUMNS[name] for name in NESTED_COLUMNS}  # what a viewer shows first comes first
    return pa.schema(list(ordered.items()), metadata={_VERSION_KEY: str(VERSION)})


def version_of(schema: pa.Schema, path: object) -> int:
    """The version of a file with this schema.

    Args:
        schema: As the file has it.
        path: Of the file, for the message.

    Raises:
        StageError: It is of a later version than this one reads.
    """
    version = int((schema.metadata or {}).get(_VERSION_KEY, b"1"))
    if version > VERSION:
        raise StageError(
            f"{path} is a rollout file of version {version}; this rlhf reads versions 1 to {VERSION}. "
            "Read it with the rlhf that wrote it, or with a later one"
        )
    return version


def upgraded(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of version 1 in the columns of now; what version 1 did not keep is None.

    Version 1 counted iterations from 0 and kept the numbers of tokens, and prompts of several messages, as JSON text.
    """
    kept = {name: row[name] for name in row if name in COLUMNS and name not in NESTED_COLUMNS}
    components = {name: row[name] for name in row if name.startswith(COMPONENT_PREFIX)}
    lists = {field: json.loads(row[name]) for field, name in _VERSION_1_TOKENS.items() if row.get(name) is not None}
    tokens = [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]
    for token in tokens:
        token["kl"] = token["logprob"] - token["ref_logprob"]
    prompt = _messages(row["prompt"])
    answer = {"role": "assistant", "content": row["response"] or "", "turn": 1}
    return {
        **kept,
        **components,
        "iteration": row["iteration"] + 1,
        "prompt": prompt if len(prompt) > 1 else prompt[0]["content"],
        "reward": sum(token["reward"] for token in tokens) if tokens else None,
        "messages": [*({"role": m["role"], "content": m["content"], "turn": 0} for m in prompt), answer],
        "tokens": tokens or None,
    }


def _messages(prompt: str | None) -> list[dict[str, Any]]:
    try:
        found = json.loads(prompt or "")
    except json.JSONDecodeError:
        found = None
    whole = (
        isinstance(found, list)
        and found
        and all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in found)
    )
    return found if whole else [{"role": "user", "content": prompt or ""}]
