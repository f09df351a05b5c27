"""A study as overrides of another: the words that `config.overrides` reads back as the same values."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from vitscale.config.keys import FREE, full_path, is_axis
from vitscale.config.labels import flatten
from vitscale.config.overrides import parse_value
from vitscale.errors import UsageError


def leaves(document: Mapping[str, Any]) -> dict[str, Any]:
    """A study's document by dotted path; what varies by its path stands at that path, as the list."""
    tree = {key: dict(value) if isinstance(value, Mapping) else value for key, value in document.items()}
    axes = tree.get("axes")
    swept = axes.pop("swept", None) or {} if isinstance(axes, dict) else {}
    return {**flatten(tree), **swept}


def words(base: Mapping[str, Any], wanted: Mapping[str, Any], always: Collection[str] = ()) -> list[str]:
    """`key=value` for what differs, by dotted path; a key that only `base` has cannot be taken away by a word.

    Args:
        base: `leaves` of the study as its file is.
        wanted: those of the study to be had.
        always: paths that are told though nothing differs.
    """
    differ = {path: value for path, value in wanted.items() if path in always or base.get(path) != value}
    changed = {path: value for path, value in differ.items() if value is not None}
    return [f"{_short(path)}={text(path, value)}" for path, value in changed.items()]


def text(path: str, value: Any) -> str:
    """A value as a word has it: bare where that reads back the same, else in TOML's form."""
    own = path.split(".")[0] in FREE or path == "engine.split"
    if isinstance(value, list) and not (own and not is_axis(path)):
        return ",".join(_one(item) for item in value)
    return _one(value)


def _one(value: Any) -> str:
    plain = isinstance(value, str) and value and value.strip() == value and "," not in value
    if plain and parse_value(value, value) == value:
        return str(value)
    return json.dumps(value, ensure_ascii=False)


def _short(path: str) -> str:
    """The key's last name where that is enough."""
    last = path.rsplit(".", 1)[-1]
    try:
        return last if full_path(last) == path else path
    except UsageError:
        return path
