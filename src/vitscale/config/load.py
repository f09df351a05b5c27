"""From a study's file and the command line to one frozen `Study`."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from vitscale.config import deepspeed
from vitscale.config.keys import get_path, leaf_paths, suggestion, unknown_key
from vitscale.config.overrides import apply_overrides
from vitscale.config.study import Axes, Study
from vitscale.errors import UsageError


class Loaded(NamedTuple):
    """A study, the text it was written as, and what was merged into it, one line each."""

    study: Study
    text: str
    notes: tuple[str, ...]


def load(name: str, overrides: Sequence[str] = ()) -> Loaded:
    """Read a study by path or shipped name and write the overrides into it.

    Raises:
        UsageError: no such study, broken TOML (with its line), an unknown key, a value that can never be valid, a
            DeepSpeed key that disagrees with the study.
    """
    text, folder = _read(name)
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"study `{name}` is not TOML: {_lowered(str(error))}") from None
    _gather_swept(tree)
    apply_overrides(tree, overrides)
    return from_tree(tree, text, folder, name)


def from_tree(tree: dict[str, Any], text: str, folder: Path, name: str) -> Loaded:
    """Validate a study given as nested dicts; `folder` is where a relative `deepspeed.file` starts."""
    notes: list[str] = []
    document = tree.pop("deepspeed", {})
    if not isinstance(document, dict):
        raise UsageError(f"`deepspeed` in study `{name}` is a value, not a table")
    if "file" in document:
        path = Path(folder, str(document.pop("file"))).expanduser()
        where = f"`{path.name}`"
        if document:
            raise UsageError(
                f"`[deepspeed]` has `file` and also {', '.join(f'`{key}`' for key in document)}",
                "write those keys into the file, or the file's keys into the study",
            )
        document = deepspeed.read_file(path)
    else:
        where = "`[deepspeed]`"
    deepspeed.check_keys(document, where)
    rest, adopted = deepspeed.adopt(tree, document, where)
    notes += adopted
    if rest:
        notes.append(f"for DeepSpeed alone, from {where}: {json.dumps(rest)}")
    study = validate({**tree, "deepspeed": rest}, f"study `{name}`")
    return Loaded(study, text, tuple(notes))


def validate(tree: dict[str, Any], where: str) -> Study:
    """Check a study's tree against the schema.

    Raises:
        UsageError: the first thing wrong, by its dotted path, and how many more there are.
    """
    for path in get_path(tree, "axes.swept") or ():
        if path not in leaf_paths():
            raise unknown_key(path, f"`[axes]` of {where}", leaf_paths())
    try:
        return Study.model_validate(tree)
    except ValidationError as error:
        raise _explained(error, where) from None


def shipped() -> tuple[str, ...]:
    """Names of the shipped studies: the path below `vitscale/studies`, without the ending."""
    root = Path(str(resources.files("vitscale"))) / "studies"
    return tuple(sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.toml")))


def _read(name: str) -> tuple[str, Path]:
    path = Path(name).expanduser()
    if not (path.is_file() or path.suffix == ".toml"):
        if name not in shipped():
            hint = suggestion(name, shipped()) or f"a path to a .toml file, or one of: {', '.join(shipped())}"
            raise UsageError(f"no study `{name}`: neither a file nor a shipped study", hint)
        path = Path(str(resources.files("vitscale"))) / "studies" / f"{name}.toml"
    try:
        return path.read_text(encoding="utf-8-sig"), path.resolve().parent
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"cannot read study `{name}`: {reason}") from None


def _gather_swept(tree: dict[str, Any]) -> None:
    """Put the keys of `[axes]` that are no axis by name (dotted paths) into `axes.swept`."""
    axes = tree.get("axes")
    if not isinstance(axes, dict):
        return
    swept = dict(_flat({key: axes.pop(key) for key in list(axes) if key not in Axes.model_fields}))
    # `"axes.zero_stage" = [0, 1]` inside [axes] is just zero_stage.
    for path in [path for path in swept if path.partition(".")[2] in Axes.model_fields]:
        axes[path.partition(".")[2]] = swept.pop(path)
    if "swept" in axes:
        raise unknown_key("swept", "`[axes]`", leaf_paths())
    if swept:
        axes["swept"] = swept


def _flat(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in tree.items():
        pairs += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return pairs


def _explained(error: ValidationError, where: str) -> UsageError:
    """One line for the first of pydantic's complaints."""
    problems = error.errors(include_url=False, include_context=False)
    first = problems[0]
    path = ".".join(str(part) for part in first["loc"] if not isinstance(part, int))
    if first["type"] == "extra_forbidden":
        return unknown_key(path, where, leaf_paths())
    message = _lowered(first["msg"].removeprefix("Value error, "))
    if first["type"] == "missing":
        text = f"{where} has no `{path}`"
    elif isinstance(first["input"], dict) or not path:
        text = f"{where}: {message}" if not path else f"`{path}` in {where}: {message}"
    else:
        text = f"`{path}` = {first['input']!r} in {where}: {message}"
    more = len(problems) - 1
    return UsageError(text, f"and {more} more to put right" if more else None)


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]
