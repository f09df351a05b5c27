"""Generates `config/study.schema.json`: the study file as JSON Schema, with which editors check and complete TOML."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

from tools.reference import is_varying
from vitscale.config.keys import leaf_paths, require_swept
from vitscale.config.study import Axes, Study
from vitscale.errors import UsageError

TARGET = Path(__file__).parents[1] / "src/vitscale/config/study.schema.json"


def generate() -> str:
    """The schema as JSON text."""
    schema = Study.model_json_schema()
    sections: dict[str, Any] = schema["$defs"]
    _listed(schema, Study)
    axes = sections["Axes"]["properties"]
    del axes["swept"]
    _listed(sections["Axes"], Axes)
    for path in leaf_paths():
        if _may_vary(path):
            _add_swept(axes, path, _property(schema, path))
    sections["Axes"]["patternProperties"] = {r"^deepspeed\.": {"description": "A DeepSpeed key that varies."}}
    axes["deepspeed"] = {"type": "object", "description": "DeepSpeed keys that vary."}
    tidy = {"$schema": "https://json-schema.org/draft/2020-12/schema", **_tidy(schema), "title": "vitscale study"}
    return json.dumps(tidy, indent=2, ensure_ascii=False) + "\n"


def write() -> None:
    """Rewrite the committed schema."""
    TARGET.write_text(generate(), encoding="utf-8")


def _listed(schema: dict[str, Any], model: Any) -> None:
    """Accept one value where pydantic's schema, which sees the checked study, has a list."""
    for name, field in model.model_fields.items():
        if name in schema["properties"] and (is_varying(tuple(field.metadata)) or _optional_varying(field.annotation)):
            prop = schema["properties"][name]
            array = next((one for one in prop.get("anyOf", ()) if one.get("type") == "array"), prop)
            kept = {key: prop[key] for key in ("description",) if key in prop}
            schema["properties"][name] = {**_one_or_list(array["items"]), **kept}


def _optional_varying(annotation: Any) -> bool:
    return any(is_varying(tuple(getattr(arg, "__metadata__", ()))) for arg in get_args(annotation))


def _one_or_list(item: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [item, {"type": "array", "items": item, "minItems": 1, "uniqueItems": True}]}


def _may_vary(path: str) -> bool:
    try:
        require_swept(path, "")
    except UsageError:
        return False
    return not path.startswith("axes.")


def _property(schema: dict[str, Any], path: str) -> dict[str, Any]:
    *tables, last = path.split(".")
    node = schema
    for table in tables:
        node = schema["$defs"][node["properties"][table]["$ref"].removeprefix("#/$defs/")]
    found: dict[str, Any] = node["properties"][last]
    return found


def _add_swept(axes: dict[str, Any], path: str, prop: dict[str, Any]) -> None:
    """A key that varies by its dotted path: quoted it is one key of `[axes]`, bare it is a table in it.

    `engine` is an axis itself and no table there: its knobs are quoted.
    """
    listed = _one_or_list(_without_null(prop))
    listed["description"] = f"`{path}`, varied. {prop.get('description', '')}".strip()
    axes[path] = listed
    tables = path.split(".")
    if tables[0] in Axes.model_fields:
        return
    for table in tables[:-1]:
        inner = axes.setdefault(table, {"type": "object", "properties": {}, "additionalProperties": False})
        axes = inner["properties"]
    axes[tables[-1]] = listed


def _without_null(prop: dict[str, Any]) -> dict[str, Any]:
    bare = {key: value for key, value in prop.items() if key not in ("default", "description", "title")}
    options = [one for one in bare.pop("anyOf", []) if one != {"type": "null"}]
    if len(options) == 1:
        return {**bare, **options[0]}
    return {**bare, "anyOf": options} if options else bare


def _tidy(node: Any) -> Any:
    """No titles, which repeat the keys; no null, which TOML does not have; descriptions on one line."""
    if isinstance(node, list):
        return [_tidy(one) for one in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        # Defaults of whole tables repeat those of their keys.
        node = {key: value for key, value in node.items() if key != "default"}
    if isinstance(node.get("anyOf"), list) and {"type": "null"} in node["anyOf"]:
        kept = {key: node[key] for key in ("description",) if key in node}
        node = {**_without_null(node), **kept}
    tidy = {}
    for key, value in node.items():
        if key == "title" and isinstance(value, str):
            continue
        tidy[key] = " ".join(value.split()) if key == "description" and isinstance(value, str) else _tidy(value)
    return tidy
