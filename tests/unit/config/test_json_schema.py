"""The JSON schema that editors read, and the configs that ship."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf.config.json_schema import schema, schema_text
from rlhf.config.load import load_config

CONFIGS = Path(__file__).parents[3] / "configs"
SHIPPED = sorted(CONFIGS.glob("**/*.yaml"))


def test_the_file_is_in_step():
    written = (CONFIGS / "schema.json").read_text(encoding="utf-8")
    # Older versions of pydantic write 0 for 0.0.
    assert json.loads(written) == json.loads(schema_text()), "run `rlhf schema > configs/schema.json`"


def test_every_key_has_a_description():
    definitions = schema()["$defs"]
    for name, definition in {"Config": schema(), **definitions}.items():
        for key, field in definition.get("properties", {}).items():
            section = definitions.get(field.get("$ref", "").rpartition("/")[2], {})  # not repeated if both say the same
            assert field.get("description") or section.get("description"), f"{name}.{key}"


def test_ranges_and_choices_are_in_the_schema():
    definitions = schema()["$defs"]
    ppo = definitions["PPOSectionConfig"]["properties"]
    assert ppo["clip_range"]["exclusiveMinimum"] == 0
    assert (ppo["gae_lambda"]["minimum"], ppo["gae_lambda"]["maximum"]) == (0, 1)
    assert ppo["advantage"]["enum"] == ["gae", "rloo", "group", "reinforce"]
    assert ppo["learning_rate"]["default"] == 1e-5


def test_unknown_keys_are_marked():
    for name, definition in schema()["$defs"].items():
        forms = definition.get("anyOf", [definition])
        assert all(form.get("additionalProperties") is False for form in forms if form["type"] == "object"), name


def test_all_forms_of_a_data_section_are_allowed():
    for name in ("DataConfig", "PromptDataConfig"):
        path, single, several = schema()["$defs"][name]["anyOf"]
        assert path["type"] == "string"
        assert single["required"] == ["path"]
        assert {"path", "columns", "format", "test_fraction"} <= set(single["properties"])
        assert "sources" not in single["properties"]
        assert several["required"] == ["sources"]


def test_references_point_somewhere():
    found: Any = schema()
    stack, references = [found], set()
    while stack:
        entry = stack.pop()
        if isinstance(entry, dict):
            references |= {entry["$ref"]} if "$ref" in entry else set()
            stack += entry.values()
        elif isinstance(entry, list):
            stack += entry
    assert references
    assert references <= {f"#/$defs/{name}" for name in found["$defs"]}


def test_the_configs_of_the_readme_ship():
    assert {"quickstart.yaml", "tiny.yaml"} <= {path.name for path in SHIPPED}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_config_loads_and_names_the_schema(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(CONFIGS.parent)
    assert load_config(path).config.name
    up = "../" * (len(path.relative_to(CONFIGS).parts) - 1)
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first == f"# yaml-language-server: $schema={up}schema.json"
