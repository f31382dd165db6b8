"""Unpaired feedback, as KTO reads it (Ethayarajh et al., 2024): `prompt`, `completion` and `label`, true for desired.

Called by `formats.py`. A demonstration is a desired completion. A preference is a desired and an undesired completion
of one prompt, the first with the first, the second with the second. Rows that are left over are counted, and no error.
"""

import json
from collections import defaultdict
from dataclasses import replace

from rlhf.data.raw import WRONG_FORMAT, RawRow
from rlhf.data.rows import Kind

_LABELS = {True: True, False: False, "true": True, "false": False, "True": True, "False": False}


def read_kto(rows: list[RawRow], kind: Kind) -> list[RawRow]:
    """Turn labelled rows into what a stage needs; prompts stay as they are, completion and label as columns."""
    if kind == "prompts":
        return rows
    checked = [_checked(row) for row in rows]
    return [_desired(row) for row in checked] if kind == "demonstrations" else _paired(checked)


def _checked(row: RawRow) -> RawRow:
    if row.problem is not None:
        return row
    missing = [name for name in ("prompt", "completion", "label") if row.values.get(name) is None]
    if missing:
        has = ", ".join(row.values) or "no columns"
        return replace(row, problem=f"{WRONG_FORMAT}kto: there is no {missing[0]}; the row has {has}")
    label = row.values["label"]
    if not isinstance(label, bool | int | str) or label not in _LABELS:
        return replace(row, problem=f"{WRONG_FORMAT}kto: label is {label!r}; allowed are true and false")
    return replace(row, values={**row.values, "label": _LABELS[label]})


def _desired(row: RawRow) -> RawRow:
    if row.problem is not None or row.values["label"]:
        return row
    return replace(row, problem="its label is false, and a demonstration is to be imitated", left_out="undesired")


def _paired(rows: list[RawRow]) -> list[RawRow]:
    waiting: dict[str, dict[bool, list[RawRow]]] = defaultdict(lambda: {True: [], False: []})
    for row in rows:
        if row.problem is None:
            key = json.dumps(row.values["prompt"], sort_keys=True, default=repr)
            waiting[key][row.values["label"]].append(row)
    result = [row for row in rows if row.problem is not None]
    for sides in waiting.values():
        desired, undesired = sides[True], sides[False]
        result += [_pair(better, worse) for better, worse in zip(desired, undesired, strict=False)]
        pairs = min(len(desired), len(undesired))
        result += [
            replace(
                row,
                problem="no completion of the other label answers the same prompt, so there is no pair",
                left_out="unpaired",
            )
            for row in desired[pairs:] + undesired[pairs:]
        ]
    return result


def _pair(better: RawRow, worse: RawRow) -> RawRow:
    columns = {name: value for name, value in better.values.items() if name not in ("completion", "label")}
    return RawRow(
        f"{better.place} (and {worse.place.rpartition(', ')[2]})",
        {**columns, "chosen": better.values["completion"], "rejected": worse.values["completion"]},
    )
