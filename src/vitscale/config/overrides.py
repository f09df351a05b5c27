"""`key=value` on the command line: values read as TOML reads them, a comma makes a list."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitscale.config.keys import FREE, full_path, is_axis, require_swept, set_path, shown
from vitscale.errors import UsageError

# A comma in these is a comma.
_PROSE = ("name", "question")


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> tuple[str, ...]:
    """Write `key=value` words into the study's tree. A list for a key that is no axis becomes one, by its dotted path.

    DeepSpeed's own keys and `engine.split` may hold a list: in brackets it is their value, with bare commas it varies.
    Of several words for one key the last counts, so that a word pasted behind a command changes it.

    Returns:
        The words that do not count, one line each.

    Raises:
        UsageError: a word without `=`, an unknown or ambiguous key, an empty value, or a list for a key that cannot
            vary.
    """
    seen: dict[str, str] = {}
    notes: list[str] = []
    for word in overrides:
        key, equals, text = word.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"`{shown(word)}` is not an override", "write key=value, for example world_size=1,2,4")
        path = full_path(key.strip())
        if path in seen:
            notes.append(f"`{path}` is given twice: `{shown(word)}` counts, not `{shown(seen[path])}`")
        seen[path] = word
        value = parse_value(text, word)
        if isinstance(value, list) and path in _PROSE:
            value = text.strip()
        if isinstance(value, list) and not is_axis(path) and not _own_list(path, text):
            require_swept(path, "the overrides")
            set_path(tree, "axes.swept", {**_swept(tree), path: value})
        else:
            # One value ends what the file let vary.
            _swept(tree).pop(path, None)
            if path == "deepspeed.file" and isinstance(value, str):
                value = str(Path(value).expanduser().absolute())  # typed here, so meant from here
            set_path(tree, path, value)
    return tuple(notes)


# Keys whose value is a list, so that commas make it longer and not vary.
_LISTS = ("train.trackers",)


def _own_list(path: str, text: str) -> bool:
    if path in _LISTS:
        return True
    return (path.split(".")[0] in FREE or path == "engine.split") and text.strip().startswith("[")


def _swept(tree: dict[str, Any]) -> dict[str, Any]:
    """The keys that vary by their dotted path; a tree of another shape has none, and is refused later."""
    axes = tree.get("axes")
    swept = axes.get("swept") if isinstance(axes, dict) else None
    return swept if isinstance(swept, dict) else {}


def parse_value(text: str, word: str) -> Any:
    """One value: a TOML number, boolean, array or quoted string; a bare word is a string; commas make a list."""
    text = text.strip()
    if not text:
        raise UsageError(f"`{shown(word)}` has no value", "to leave a key out, delete it from the study file")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        if "," in text and text[0] not in "[{\"'":
            return [parse_value(item, word) for item in text.split(",")]
        return _bare(text)
    # TOML reads `2026-11-24` as a date and a line break as a second key; here both are just text.
    return value if isinstance(value, bool | int | float | str | list | dict) and "\n" not in text else text


def _bare(text: str) -> Any:
    """What TOML does not read: `.5` is a number, `True` is a boolean, everything else is a word."""
    if text in ("True", "False"):
        return text == "True"
    try:
        return float(text) if text[0] in "+-.0123456789" else text
    except ValueError:
        return text
