"""The names of all study keys: dotted paths, short names, and the nearest name to a misspelt one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from pydantic import BaseModel

from vitscale.config.study import Axes, Study
from vitscale.errors import UsageError

# Tables whose keys are the user's own.
FREE = ("deepspeed",)
# Keys of the study as a whole: a run has no value of its own, so that they cannot vary from run to run.
_STUDY_WIDE = (
    "schema_version", "name", "question", "protocol", "measure.launches", "measure.target_interval", "measure.budget_s",
    "measure.baseline", "hardware.", "launch.start_timeout_s", "launch.step_timeout_s", "launch.grace_s",
    "launch.hostfile",
    "launch.partition", "launch.account", "launch.qos", "launch.constraint", "launch.time_limit", "launch.exclusive",
    "launch.job_array",
)  # fmt: skip
_HIDDEN = {"axes.swept", "deepspeed"}


@cache
def leaf_paths() -> tuple[str, ...]:
    """Dotted path of every key that holds a value, for example `axes.world_size`."""
    return tuple(path for path in _walk(Study, "") if path not in _HIDDEN)


def _walk(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _walk(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def full_path(key: str) -> str:
    """Resolve a key of an override: a dotted path, or its last name where only one path ends in it.

    Raises:
        UsageError: no such key, or several keys end in that name.
    """
    if key in leaf_paths() or key.split(".")[0] in FREE:
        return key
    ending = [path for path in leaf_paths() if path.rsplit(".", 1)[-1] == key]
    if len(ending) == 1:
        return ending[0]
    if ending:
        raise UsageError(f"`{key}` could be any of {_quoted(ending)}", "write the dotted path")
    raise unknown_key(key, "the study", leaf_paths())


def unknown_key(key: str, where: str, known: Iterable[str]) -> UsageError:
    """The error for a key nobody reads, with the nearest one that exists."""
    return UsageError(f"unknown key `{shown(key)}` in {where}", suggestion(key, known))


def shown(text: str) -> str:
    """The text on one line, control characters escaped."""
    return text if text.isprintable() else repr(text)[1:-1]


def suggestion(name: str, known: Iterable[str]) -> str | None:
    """`did you mean …?` with the nearest of `known`, by the whole name or by a dotted path's last name."""
    candidates = sorted(known)
    by_last = {path.rsplit(".", 1)[-1]: path for path in candidates}
    if not name:
        return None
    near = difflib.get_close_matches(name, candidates, n=3, cutoff=0.6)
    near += [by_last[last] for last in difflib.get_close_matches(name.rsplit(".", 1)[-1], by_last, n=3, cutoff=0.6)]
    near += [path for path in candidates if name in path]
    unique = list(dict.fromkeys(near))[:3]
    return f"did you mean {_quoted(unique, 'or')}?" if unique else None


def set_path(tree: dict[str, Any], path: str, value: Any) -> None:
    """Set a dotted path in nested dicts, making the tables in between.

    Raises:
        UsageError: a name on the way holds a value, not a table.
    """
    *tables, last = path.split(".")
    for table in tables:
        inner = tree.setdefault(table, {})
        if not isinstance(inner, dict):
            raise UsageError(f"`{table}` in `{path}` is a value, not a table")
        tree = inner
    tree[last] = value


def get_path(tree: dict[str, Any], path: str) -> Any:
    """The value at a dotted path of nested dicts, or None where there is none."""
    node: Any = tree
    for name in path.split("."):
        if not isinstance(node, dict) or name not in node:
            return None
        node = node[name]
    return node


def is_axis(path: str) -> bool:
    """Whether the key at `path` takes a list to vary over."""
    table, _, name = path.partition(".")
    return path == "protocol" or (table == "axes" and name in Axes.model_fields)


def require_swept(path: str, where: str) -> None:
    """Refuse a dotted path of `[axes]` that cannot vary.

    Raises:
        UsageError: no such key, or one of the study as a whole.
    """
    if path.split(".")[0] in FREE and "." in path:
        return
    if path not in leaf_paths():
        raise unknown_key(path, f"`[axes]` of {where}", leaf_paths())
    if path == "protocol":
        raise UsageError(
            f"`protocol` stands in `[axes]` of {where}", "write it above the tables; it takes a list there"
        )
    if path.startswith(_STUDY_WIDE):
        raise UsageError(f"`{path}` cannot vary in {where}: the whole study has one value", "give one value")


def _quoted(names: Iterable[str], joint: str = "and") -> str:
    ticked = [f"`{name}`" for name in names]
    return f" {joint} ".join([", ".join(ticked[:-1]), ticked[-1]]) if len(ticked) > 1 else ticked[0]
