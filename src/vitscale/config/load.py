"""From a study's file and the command line to one frozen `Study`."""

from __future__ import annotations

import copy
import json
import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from vitscale.config import deepspeed
from vitscale.config.keys import get_path, leaf_paths, require_swept, set_path, shown, suggestion, unknown_key
from vitscale.config.overrides import apply_overrides
from vitscale.config.study import Axes, Study
from vitscale.config.texts import read_text
from vitscale.errors import UsageError


class Loaded(NamedTuple):
    """A study, the text it was written as, and what a reader should know of its making, one line each."""

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
    except (ValueError, RecursionError) as error:
        raise UsageError(f"study `{name}` is not TOML: {_lowered(str(error))}") from None
    _gather_swept(tree)
    notes = apply_overrides(tree, overrides)
    loaded = from_tree(tree, text, folder, name)
    return loaded._replace(notes=(*notes, *loaded.notes))


def from_tree(tree: dict[str, Any], text: str, folder: Path, name: str) -> Loaded:
    """Validate a study given as nested dicts; `folder` is where a relative `deepspeed.file` starts."""
    notes: list[str] = []
    document = tree.pop("deepspeed", {})
    if not isinstance(document, dict):
        raise UsageError(f"`deepspeed` in study `{name}` is a value, not a table")
    if "file" in document:
        path = _beside(folder, document.pop("file"), name)
        where = f"`{shown(path.name)}`"
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
    tree = {**tree, "deepspeed": rest}
    study = validate(tree, f"study `{name}`")
    _check_swept(study, tree, f"study `{name}`")
    return Loaded(study, text, tuple(notes))


def _beside(folder: Path, file: Any, name: str) -> Path:
    """A path that starts at the study's folder where it is relative."""
    if not isinstance(file, str):
        raise UsageError(f"`deepspeed.file` = {file!r} in study `{name}` is not a path")
    try:
        return Path(folder, Path(file).expanduser())
    except RuntimeError as error:
        raise UsageError(f"`deepspeed.file` = {file!r} in study `{name}`: {_lowered(str(error))}") from None


def _check_swept(study: Study, tree: dict[str, Any], where: str) -> None:
    """Refuse the values of a swept key that can never be valid, whatever else varies."""
    for path, values in study.axes.swept.items():
        table, _, key = path.partition(".")
        if table == "deepspeed":
            deepspeed.check_swept(key, values)
            continue
        for value in values:
            trial = copy.deepcopy(tree)
            del trial["axes"]["swept"]
            set_path(trial, path, value)
            validate(trial, where)


def validate(tree: dict[str, Any], where: str) -> Study:
    """Check a study's tree against the schema.

    Raises:
        UsageError: the first thing wrong, by its dotted path, and how many more there are.
    """
    for path in get_path(tree, "axes.swept") or ():
        require_swept(path, where)
    try:
        return Study.model_validate(tree)
    except ValidationError as error:
        raise _explained(error, where) from None


def shipped() -> tuple[str, ...]:
    """Names of the shipped studies: the path below `vitscale/studies`, without the ending."""
    root = Path(str(resources.files("vitscale"))) / "studies"
    return tuple(sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.toml")))


def _read(name: str) -> tuple[str, Path]:
    try:
        path = Path(name).expanduser()
    except RuntimeError as error:
        raise UsageError(f"cannot read study `{name}`: {_lowered(str(error))}") from None
    if not (path.is_file() or path.suffix == ".toml"):
        if name not in shipped():
            hint = suggestion(name, shipped()) or f"a path to a .toml file, or one of: {', '.join(shipped())}"
            raise UsageError(f"no study `{shown(name)}`: neither a file nor a shipped study", hint)
        path = Path(str(resources.files("vitscale"))) / "studies" / f"{name}.toml"
    try:
        return read_text(path).removeprefix("\ufeff"), path.resolve().parent
    except ValueError as error:
        raise UsageError(f"cannot read study `{name}`: {error}") from None


def _gather_swept(tree: dict[str, Any]) -> None:
    """Put the keys of `[axes]` that are no axis by name (dotted paths) into `axes.swept`."""
    axes = tree.get("axes")
    if not isinstance(axes, dict):
        return
    swept = dict(_flat({key: axes.pop(key) for key in list(axes) if key not in Axes.model_fields}))
    # `"axes.zero_stage" = [0, 1]` inside [axes] is just zero_stage.
    for path in [path for path in swept if path.partition(".")[2] in Axes.model_fields]:
        axis = path.partition(".")[2]
        if axis in axes:
            raise UsageError(f"`{axis}` is given twice in `[axes]`: {axes[axis]!r} and {swept[path]!r}")
        axes[axis] = swept.pop(path)
    if "swept" in axes:
        raise UsageError("unknown key `swept` in `[axes]`", "write each key that varies by its own dotted path")
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
    path = ".".join(str(part) for part in first["loc"] if not isinstance(part, int)).removeprefix("axes.swept.")
    if first["type"] == "extra_forbidden":
        return unknown_key(path, where, leaf_paths())
    message = _lowered(first["msg"].removeprefix("Value error, "))
    if first["type"] == "missing":
        text = f"{where} has no `{path}`"
    elif first["type"] == "model_type":
        text = f"`{path}` = {_clipped(first['input'])} in {where} is a value, not a table"
    elif first["type"] == "value_error" and isinstance(first["input"], dict):
        # A rule between the keys of one table: the message has their values.
        text = f"`{path}` in {where}: {message}"
    else:
        text = f"`{path}` = {_clipped(first['input'])} in {where}: {message}"
    more = len(problems) - 1
    return UsageError(text, f"and {more} more to put right" if more else None)


def _clipped(value: Any, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}…"


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]
