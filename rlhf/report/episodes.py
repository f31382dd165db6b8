"""The rollouts of a run as the page holds them: small, typed and compressed, so that tens of thousands open at once.

Everything that sorts and filters is one block; the numbers of tokens are a block for every few hundred episodes, which
the page opens when somebody looks at one of them. Numbers of tokens are rounded to half precision (three digits); the
Parquet files have them all. `page/data.js` reads what is written here. Nothing is computed here but sums of parts.
"""

import base64
import gzip
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rlhf.results.run import Run
from rlhf.tracking.rollout_schema import COMPONENT_PREFIX

__all__ = ["TOKEN_NUMBERS", "blocks_of", "pack"]

EPISODES_PER_BLOCK = 512
# Numbers of a token, in the order in which they lie in a block. What they do not name is their sum or difference.
TOKEN_NUMBERS = ("logprob", "kl", "reward_score", "reward_penalty", "reward_kl", "reward", "value", "advantage")
_NUMBERS = ("score", "reward", "reward_penalty", "reward_kl", "kl", "length", "index", "sample_index", "iteration")
_TEXTS = ("prompt", "stop_reason")
_NOT_WHITENED = 1e-3  # a reward this near to the sum of its parts is that sum


def blocks_of(run: Run) -> dict[str, str]:
    """Name -> packed block: "episodes", "responses", and "tokens-K", "talk-K" for each K; empty without rollouts."""
    if not run.iterations:
        return {}
    table = run.rollout_table()
    texts, codes, counts = _vocabulary(table)
    head = {**_columns(table), "tokens": counts.tolist(), "vocabulary": texts, "per_block": EPISODES_PER_BLOCK}
    blocks = {
        "episodes": pack(json.dumps(head, ensure_ascii=False, allow_nan=False)),
        "responses": pack(json.dumps(table["response"].to_pylist(), ensure_ascii=False)),
    }
    ends = np.concatenate([[0], np.cumsum(counts)])
    for number, first in enumerate(range(0, len(table), EPISODES_PER_BLOCK)):
        part = table.slice(first, EPISODES_PER_BLOCK)
        own = codes[ends[first] : ends[first + len(part)]]
        blocks[f"tokens-{number}"] = pack(_token_bytes(part, own))
        talk = [_talk(row) for row in part.select(["prompt", "messages"]).to_pylist()]
        if any(talk):
            blocks[f"talk-{number}"] = pack(json.dumps(talk, ensure_ascii=False))
    return blocks


def pack(content: str | bytes) -> str:
    """Compressed, as text that may stand in a page: letters, digits, `+`, `/` and `=` only."""
    data = content.encode("utf-8", "replace") if isinstance(content, str) else content
    return base64.b64encode(gzip.compress(data, compresslevel=6, mtime=0)).decode("ascii")


def _columns(table: pa.Table) -> dict[str, Any]:
    """What sorts and filters: numbers, texts as codes into their different values, and components by name."""
    components = [name for name in table.column_names if name.startswith(COMPONENT_PREFIX)]
    numbers = {name: [_short(value) for value in table[name].to_pylist()] for name in (*_NUMBERS, *components)}
    texts = {}
    for name in _TEXTS:
        coded = table[name].combine_chunks().dictionary_encode()
        coded = coded.combine_chunks() if isinstance(coded, pa.ChunkedArray) else coded
        texts[name] = {"values": coded.dictionary.to_pylist(), "codes": coded.indices.fill_null(-1).to_pylist()}
    return {"numbers": numbers, "components": components, "texts": texts}


def _short(value: float | None) -> float | None:
    """Five digits; None for what has no form in JSON."""
    if value is None or not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.5g}")


def _vocabulary(table: pa.Table) -> tuple[list[str], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The different texts of tokens, for each token which it is, and how many tokens each episode has."""
    tokens = table["tokens"].combine_chunks()
    tokens = tokens.combine_chunks() if isinstance(tokens, pa.ChunkedArray) else tokens
    counts = pc.fill_null(pc.list_value_length(tokens), 0).to_numpy(zero_copy_only=False)
    flat = tokens.flatten()
    names = pc.binary_join_element_wise("\N{LEFT WHITE SQUARE BRACKET}", flat.field("id").cast(pa.string()),
                                        "\N{RIGHT WHITE SQUARE BRACKET}", "")  # fmt: skip
    coded = pc.coalesce(flat.field("text"), names).dictionary_encode()
    return coded.dictionary.to_pylist(), coded.indices.to_numpy(zero_copy_only=False), counts


def _token_bytes(part: pa.Table, codes: np.ndarray[Any, Any]) -> bytes:
    """All tokens of some episodes: uint32 text, uint8 turn, each of `TOKEN_NUMBERS` as float16; little-endian."""
    flat = pa.concat_arrays(part["tokens"].chunks).flatten()
    fields = {name: flat.field(name).to_numpy(zero_copy_only=False).astype(np.float64) for name in TOKEN_NUMBERS}
    total = fields["reward_score"] + fields["reward_penalty"] + fields["reward_kl"]
    known = np.isfinite(fields["reward"])
    if np.all(np.abs(fields["reward"] - total)[known] <= _NOT_WHITENED * (1 + np.abs(total[known]))):
        fields["reward"] = np.full(len(total), np.nan)  # the page adds the parts up; nothing costs nothing
    turns = pc.fill_null(flat.field("turn"), 1).to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore"):
        columns = [fields[name].astype("<f2").tobytes() for name in TOKEN_NUMBERS]
    return b"".join([codes.astype("<u4").tobytes(), np.minimum(turns, 255).astype("u1").tobytes(), *columns])


def _talk(row: dict[str, Any]) -> list[list[Any]] | None:
    """The conversation as [role, turn, content]; None for one prompt and one response, which the page has already.

    What the policy said is left out of its turns: its tokens are there.
    """
    messages = row["messages"] or []
    simple = [message["turn"] for message in messages] in ([], [0], [0, 1])
    if simple and (not messages or messages[0]["content"] == row["prompt"]):
        return None
    return list(_spoken(messages))


def _spoken(messages: list[dict[str, Any]]) -> Iterator[list[Any]]:
    for message in messages:
        own = message["turn"] > 0 and message["role"] == "assistant"
        yield [message["role"], message["turn"], None if own else message["content"]]
