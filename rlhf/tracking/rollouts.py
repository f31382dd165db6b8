"""Rollouts on disk: one typed Parquet file an iteration, `run_dir/rollouts/iteration_000012.parquet`.

A row is one episode: what was asked, what was answered, what it earned. The columns are fixed, so that files of
different iterations and runs can be read as one data set. Nothing is shown or computed here.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlhf.files.atomic import written_file
from rlhf.tracking.jsonl import finite_or_none

__all__ = ["COLUMNS", "COMPONENT_PREFIX", "TOKEN_COLUMNS", "discard_from", "list_files", "read", "typed_rows", "write"]

COMPONENT_PREFIX = "component/"

COLUMNS: dict[str, pa.DataType] = {
    "iteration": pa.int64(),
    "index": pa.int64(),  # which prompt
    "sample_index": pa.int64(),  # which of several samples of that prompt
    "prompt": pa.string(),
    "response": pa.string(),
    "score": pa.float64(),
    "kl": pa.float64(),  # nats, summed over the response
    "length": pa.int64(),  # sampled tokens
    "stop_reason": pa.string(),
}

# One entry a token, as a JSON list in a string: viewers show it, and lists of unequal length need no nested type.
TOKEN_COLUMNS = ("tokens", "logprobs", "ref_logprobs", "values", "advantages", "rewards")


def typed_rows(rows: Sequence[Mapping[str, Any]], iteration: int) -> list[dict[str, Any]]:
    """Brings rows to the fixed columns, in their fixed order; what a row lacks becomes None.

    Args:
        rows: Keys are those of `COLUMNS`, `TOKEN_COLUMNS` (a list, or JSON text) and `component/NAME`. Text columns
            that hold messages become JSON text.
        iteration: Written into every row.

    Raises:
        ValueError: A row has a key that is none of those, or a value that is not of the column's type.
    """
    types = _column_types(rows)
    return [
        {column: _convert(row.get(column), type_, column, number) for column, type_ in types.items()}
        for number, row in enumerate({**row, "iteration": iteration} for row in rows)
    ]


def write(run_dir: Path, rows: Sequence[Mapping[str, Any]], iteration: int) -> Path:
    """Writes rows made by `typed_rows`; the file appears whole or not at all."""
    types = _column_types(rows)
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=pa.schema(list(types.items())))
    path = run_dir / "rollouts" / f"iteration_{iteration:06d}.parquet"
    with written_file(path) as unfinished:
        pq.write_table(table, unfinished, compression="zstd")
    return path


def list_files(run_dir: Path) -> dict[int, Path]:
    """Iteration -> file, by rising iteration."""
    found = (run_dir / "rollouts").glob("iteration_*.parquet")
    return dict(sorted((int(path.stem.removeprefix("iteration_")), path) for path in found))


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of one file."""
    rows: list[dict[str, Any]] = pq.ParquetFile(path).read().to_pylist()
    return rows


def discard_from(run_dir: Path, iteration: int) -> None:
    """Removes the files of this and later iterations: a stage that is run again must not be mixed with its past."""
    for number, path in list_files(run_dir).items():
        if number >= iteration:
            path.unlink()


def _column_types(rows: Iterable[Mapping[str, Any]]) -> dict[str, pa.DataType]:
    """Fixed columns, then components in the order of their first appearance, then the token columns that occur."""
    seen = dict.fromkeys(key for row in rows for key in row)
    components = {key: pa.float64() for key in seen if key.startswith(COMPONENT_PREFIX)}
    tokens = {key: pa.string() for key in TOKEN_COLUMNS if key in seen}
    types = COLUMNS | components | tokens
    unknown = [key for key in seen if key not in types]
    if unknown:
        raise ValueError(
            f"rollout column {unknown[0]!r} is not known; allowed: {', '.join([*COLUMNS, *TOKEN_COLUMNS])} "
            f"and {COMPONENT_PREFIX}NAME"
        )
    return types


def _convert(value: Any, type_: pa.DataType, column: str, row: int) -> Any:
    """One cell as Python text, int or float; None stays None, and NaN stays NaN (it says: did not apply)."""
    if value is None:
        return None
    if type_ == pa.string():
        return value if isinstance(value, str) else _json(value)
    try:
        return int(value) if type_ == pa.int64() else float(value)
    except (TypeError, ValueError):
        raise ValueError(f"rollout row {row}, column {column!r}: {value!r} is not of type {type_}") from None


def _json(value: Any) -> str:
    """A list as JSON text; arrays and tensors are taken as lists, NaN as null."""
    items = value.tolist() if hasattr(value, "tolist") else list(value)
    plain = [finite_or_none(item) if isinstance(item, float) else item for item in items]
    return json.dumps(plain, ensure_ascii=False)
