"""A user's DeepSpeed JSON, taken as it is: parsed as DeepSpeed parses it, checked against the keys it reads, merged visibly.

DeepSpeed silently ignores unknown top-level keys (its own error text names `micro_batch_per_gpu`, which does not exist), so they are
refused here. Keys that say the same as a study key are adopted by the study where it leaves them out, and must agree where it does not.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import hjson

from vitscale.config.keys import get_path, set_path, unknown_key
from vitscale.errors import UsageError


class Shared(NamedTuple):
    """A DeepSpeed key and the study key of the same meaning."""

    deepspeed: str
    study: str


SHARED = (
    Shared("train_batch_size", "axes.global_batch"),
    Shared("train_micro_batch_size_per_gpu", "axes.micro_batch"),
    Shared("gradient_accumulation_steps", "axes.grad_accum"),
    Shared("zero_optimization.stage", "axes.zero_stage"),
    Shared("gradient_clipping", "optimizer.clip"),
    Shared("optimizer.type", "optimizer.name"),
    Shared("optimizer.params.lr", "optimizer.lr"),
    Shared("optimizer.params.weight_decay", "optimizer.weight_decay"),
    Shared("optimizer.params.momentum", "optimizer.momentum"),
)

# DeepSpeed's default where a JSON that has an `optimizer` leaves the parameter out (torch's own).
_PRECISIONS = {"bf16": "bf16", "bfloat16": "bf16", "fp16": "fp16"}
_OPTIMIZERS = {"adamw": "adamw", "sgd": "sgd"}

# Keys that would change what is measured behind the study's back.
_REFUSED = {
    "scheduler": "the study's optimizer has no schedule in a scaling run",
    "elasticity": "an elastic batch breaks the batch identity of every protocol",
    "autotuning": "autotuning starts runs of its own; sweep the keys from `[axes]` instead",
    "wall_clock_breakdown": "it synchronises every step; the records have the split of a step without it",
    "flops_profiler": "it slows the steps it profiles; `plan` has the FLOP",
}


def parse(text: str, where: str) -> dict[str, Any]:
    """Read DeepSpeed's dialect: hjson (comments, trailing commas, bare words), duplicate keys refused.

    Raises:
        UsageError: broken text (with the line), a duplicate key, or a document that is not an object.
    """
    try:
        document = hjson.loads(text.removeprefix("﻿"), object_pairs_hook=_without_duplicates)
    except hjson.HjsonDecodeError as error:
        raise UsageError(f"{where}, line {error.lineno}: {error.msg}", "DeepSpeed reads this file with hjson") from None
    if not isinstance(document, dict):
        raise UsageError(f"{where} holds a {type(document).__name__}, not an object of DeepSpeed keys")
    return document


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"DeepSpeed key `{twice}` is given twice")
    return document


def read_file(path: Path) -> dict[str, Any]:
    """Read a DeepSpeed JSON file.

    Raises:
        UsageError: no such file, not text, or broken.
    """
    try:
        return parse(path.read_text(encoding="utf-8"), f"`{path.name}`")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read DeepSpeed file `{path}`: {error}") from None


def check_keys(document: dict[str, Any], where: str) -> None:
    """Refuse keys DeepSpeed never reads, values of the wrong kind, and keys that would falsify a measurement.

    Raises:
        UsageError: with the nearest key that exists.
    """
    known = known_keys()
    for key, value in document.items():
        if key not in known["top_level"]:
            raise unknown_key(key, f"{where}: DeepSpeed would ignore it silently", known["top_level"])
        if key in _REFUSED and value not in (False, {}) and get_path(document, f"{key}.enabled") is not False:
            raise UsageError(f"DeepSpeed key `{key}` in {where} cannot be used here: {_REFUSED[key]}")
        if isinstance(value, str) and value in ("True", "False", "auto"):
            kind = (
                "a word, not a boolean: JSON has true and false"
                if value != "auto"
                else "Hugging Face's, not DeepSpeed's"
            )
            raise UsageError(f"DeepSpeed key `{key}` in {where} is `{value}`, which is {kind}")
    for section, names in known["sections"].items():
        value = get_path(document, section)
        if value is not None and not isinstance(value, dict) and section not in ("zero_optimization", "compile"):
            raise UsageError(f"DeepSpeed key `{section}` in {where} is {value!r}, not a table")
        for name in value if isinstance(value, dict) else ():
            if name not in names:
                raise unknown_key(name, f"`{section}` of {where}", names)


@cache
def known_keys() -> dict[str, Any]:
    """The generated table: `top_level` names and `sections` with their names."""
    return tomllib.loads(resources.files("vitscale.config").joinpath("deepspeed_keys.toml").read_text())


def adopt(tree: dict[str, Any], document: dict[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    """Merge a checked DeepSpeed document into the study's tree.

    Args:
        tree: the study as nested dicts, changed in place: keys that both sides know are set where the study has none.
        document: DeepSpeed's keys.
        where: how to name the document in messages.

    Returns:
        What is left for DeepSpeed alone, and one line per adopted key.

    Raises:
        UsageError: a key both give with different values; the message has all of them, with both values.
    """
    rest: dict[str, Any] = {key: dict(value) if isinstance(value, dict) else value for key, value in document.items()}
    notes, conflicts = [], []
    for shared, value in _shared_values(rest):
        mine = get_path(tree, shared.study)
        if mine is None:
            set_path(tree, shared.study, value)
            notes.append(f"`{shared.study}` = {value} from {where} (`{shared.deepspeed}`)")
        elif mine not in (value, [value]):
            conflicts.append(f"`{shared.deepspeed}` = {value} but the study has `{shared.study}` = {mine}")
    if conflicts:
        raise UsageError(f"{where} and the study disagree: " + "; ".join(conflicts), "remove one of the two")
    return rest, notes


def _shared_values(rest: dict[str, Any]) -> Iterator[tuple[Shared, Any]]:
    """Take the keys both sides know out of `rest` and give them in the study's words."""
    for shared in SHARED:
        value = get_path(rest, shared.deepspeed)
        if value is None:
            continue
        _remove(rest, shared.deepspeed)
        if shared.deepspeed == "optimizer.type":
            value = _optimizer_name(value)
        yield shared, value
    for section, precision in _PRECISIONS.items():
        table = rest.get(section)
        if isinstance(table, dict) and table.get("enabled"):
            _remove(rest, f"{section}.enabled")
            yield Shared(f"{section}.enabled", "axes.precision"), precision
    leftover = get_path(rest, "optimizer.params")
    if leftover:
        raise UsageError(f"DeepSpeed optimizer parameters {sorted(leftover)} have no study key yet", "remove them")
    rest.pop("optimizer", None)


def _optimizer_name(value: Any) -> str:
    name = _OPTIMIZERS.get(str(value).lower())
    if name is None:
        raise UsageError(f"DeepSpeed optimizer type `{value}` is not one of {', '.join(_OPTIMIZERS)}")
    return name


def _remove(tree: dict[str, Any], path: str) -> None:
    *tables, last = path.split(".")
    for table in tables:
        tree = tree[table]
    del tree[last]
