"""The JSON schema of a config file, from which editors complete, describe and check; `configs/schema.json` holds it."""

import copy
import json
from typing import Any

from rlhf.config.schema import Config

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, Any]:
    """The JSON schema, with the short forms of a `data` section."""
    found = Config.model_json_schema()
    definitions = found["$defs"]
    for name in ("DataConfig", "PromptDataConfig"):
        definitions[name] = _with_short_forms(definitions[name], definitions["SourceConfig"])
    return {"$schema": _DIALECT, **found}


def schema_text() -> str:
    """The schema as it stands in `configs/schema.json`."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def _with_short_forms(data: dict[str, Any], source: dict[str, Any]) -> dict[str, Any]:
    """`data: FILE`, and the keys of the only source beside those of the section."""
    merged = copy.deepcopy(data)
    merged["properties"] = {**copy.deepcopy(source["properties"]), **merged["properties"]}
    del merged["properties"]["sources"]
    merged |= {"required": ["path"], "title": "One source", "description": "A data set of one source."}
    path = {"type": "string", "title": "Path", "description": source["properties"]["path"]["description"]}
    return {"title": data["title"], "description": data["description"], "anyOf": [path, merged, data]}
