"""The front door of the data: a `data` section of the configuration goes in, checked rows in three splits come out.

    load -> validate -> half -> limit -> split -> mix

A tokenizer is known here only as the `encode` callback. What it makes of a row to measure it stays with the row, so
that each row is tokenised once.
"""

from collections import Counter
from dataclasses import replace
from hashlib import sha256
from typing import Any, Literal, cast, overload

from rlhf.config.data import DataConfig, SourceConfig
from rlhf.data.load import read_source, source_hash
from rlhf.data.mix import interleave, limit_sizes
from rlhf.data.rows import Demonstration, Encode, Kind, Preference, Prompt, Row, Splits
from rlhf.data.split import SplitName, in_hash_order, in_subset, split_of
from rlhf.data.validate import Report, check_rows
from rlhf.errors import DataError


@overload
def load_rows(
    config: DataConfig,
    kind: Literal["demonstrations"],
    *,
    encode: Encode | None = None,
    max_tokens: int | None = None,
) -> Splits[Demonstration]: ...
@overload
def load_rows(
    config: DataConfig, kind: Literal["preferences"], *, encode: Encode | None = None, max_tokens: int | None = None
) -> Splits[Preference]: ...
@overload
def load_rows(
    config: DataConfig, kind: Literal["prompts"], *, encode: Encode | None = None, max_tokens: int | None = None
) -> Splits[Prompt]: ...
def load_rows(
    config: DataConfig, kind: Kind, *, encode: Encode | None = None, max_tokens: int | None = None
) -> Splits[Any]:
    """Load, check, split and mix the rows of one stage.

    Every split is in the order of the prompts' hashes, so that the order of rows in a file does not matter. Each row
    has every column of the data set; one that its source does not have is None.

    Args:
        config: The stage's `data` section.
        kind: What the rows must be.
        encode: (prompt, response or None) -> tokens of the row as the stage uses it; each row keeps them.
        max_tokens: Longest row in tokens; together with `encode`.

    Returns:
        The splits, with the number of skipped rows by reason, which the caller logs.

    Raises:
        DataError: A source cannot be read, a row is bad, or nothing is left for a split that the config asks for.
    """
    report = Report()
    sources = [_load_source(source, config, kind, encode, max_tokens, report) for source in config.sources]
    sources = _same_columns(sources)
    weights = [source.weight for source in config.sources]
    sizes = limit_sizes([len(rows) for rows in sources], weights, config.max_rows)
    parts = [_split(rows[:size], config) for rows, size in zip(sources, sizes, strict=True)]
    _refuse_empty(parts, config)
    held_out = {name: in_hash_order(row for part in parts for row in part[name]) for name in ("validation", "test")}
    train = interleave([part["train"] for part in parts], weights)
    return Splits(train, held_out["validation"], held_out["test"], dict(report.skipped), report.examples)


def content_hash(config: DataConfig) -> str:
    """Hash of what the sources hold; it changes with a file's bytes, not with its name or place.

    Of a function, the source file and the arguments count, not what it reads in its turn. The other keys of the section
    do not count.

    Raises:
        DataError: If a source cannot be found.
    """
    return sha256(" ".join(source_hash(source) for source in config.sources).encode()).hexdigest()


def _load_source(
    source: SourceConfig,
    config: DataConfig,
    kind: Kind,
    encode: Encode | None,
    max_tokens: int | None,
    total: Report,
) -> list[Row]:
    raw = read_source(source, kind)
    rows, report = check_rows(
        raw,
        kind,
        on_bad_row=config.on_bad_row,
        fold_system=config.fold_system,
        encode=encode,
        max_tokens=max_tokens,
    )
    total.merge(report)
    if not raw:
        raise DataError(f"{source.path}: it holds no rows. Give a source that has some.")
    if not rows:
        first = next(iter(report.examples.values()))
        raise DataError(f"{source.path}: all {len(raw)} rows are bad ({_counted(report.skipped)}). The first: {first}")
    kept = [row for row in rows if in_subset(row.prompt, config.subset)]
    if not kept:
        raise DataError(
            f"{source.path}: none of its {len(rows)} rows falls into subset {config.subset}. Give more rows, or "
            "subset: all."
        )
    return in_hash_order(kept)


def _same_columns(sources: list[list[Row]]) -> list[list[Row]]:
    names = sorted({name for rows in sources for row in rows for name in row.columns})
    return [[replace(row, columns={name: row.columns.get(name) for name in names}) for row in rows] for rows in sources]


def _split(rows: list[Row], config: DataConfig) -> dict[SplitName, list[Row]]:
    parts: dict[SplitName, list[Row]] = {"train": [], "validation": [], "test": []}
    for row in rows:
        parts[split_of(row.prompt, config.validation_fraction, config.test_fraction)].append(row)
    return parts


def _refuse_empty(parts: list[dict[SplitName, list[Row]]], config: DataConfig) -> None:
    fractions = f"validation_fraction {config.validation_fraction}, test_fraction {config.test_fraction}"
    limit = f", max_rows {config.max_rows}" if config.max_rows is not None else ""
    for part, source in zip(parts, config.sources, strict=True):
        if not part["train"]:
            used = sum(len(rows) for rows in part.values())
            raise DataError(
                f"{source.path}: none of its {used} rows is left for training ({fractions}{limit}). Give more rows or "
                "lower the fractions."
            )
    for name, fraction in (("validation", config.validation_fraction), ("test", config.test_fraction)):
        split = cast(SplitName, name)
        if fraction and not any(part[split] for part in parts):
            used = sum(len(rows) for part in parts for rows in part.values())
            paths = ", ".join(source.path for source in config.sources)
            raise DataError(
                f"{paths}: none of the {used} rows falls into the {name} split ({name}_fraction {fraction}{limit}). "
                f"Give more rows, raise {name}_fraction, or set it to 0."
            )


def _counted(skipped: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
