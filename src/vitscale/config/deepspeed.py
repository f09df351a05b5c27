"""A user's DeepSpeed JSON: parsed as DeepSpeed parses it, checked against the keys it reads, merged visibly.

DeepSpeed silently ignores unknown top-level keys (its own error text names `micro_batch_per_gpu`, which does not
exist), so they are refused here. Keys that say the same as a study key are adopted by the study where it leaves them
out, and must agree where it does not.
"""

from __future__ import annotations

import copy
import math
import tomllib
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import hjson

from vitscale.config import buckets, offload
from vitscale.config.keys import get_path, set_path, shown, unknown_key
from vitscale.config.texts import read_text
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

_PRECISIONS = ("bf16", "fp16")
_OPTIMIZERS = {"adamw": "adamw", "sgd": "sgd"}
_NEAR_OPTIMIZERS = {
    # To DeepSpeed `Adam` is AdamW too, unless `adam_w_mode` says otherwise.
    "adam": "write `AdamW`: DeepSpeed's `Adam` decouples the weight decay as well",
    "muon": "leave it out; optimizer.name=muon is timm's Muon, another update than DeepSpeed's",
}
"""Optimizer that the study does not take from DeepSpeed's JSON -> what it has in its place."""
_OPTIMIZER_KEYS = ("type", "params")
# What torch's optimizers, which run here, have anyway.
_TORCH_DEFAULTS = {"betas": [0.9, 0.999], "eps": 1e-8}

# Keys that would change what is measured behind the study's back.
_REFUSED = {
    "scheduler": "the study's optimizer has no schedule in a scaling run",
    "elasticity": "an elastic batch breaks the batch identity of every protocol",
    "autotuning": "autotuning starts runs of its own; sweep the keys from `[axes]` instead",
    "wall_clock_breakdown": "it synchronises every step; the records have the split of a step without it",
    "flops_profiler": "it slows the steps it profiles; `plan` has the FLOP",
    "comms_logger": "it synchronises at every collective",
    **dict.fromkeys(
        ("tensorboard", "csv_monitor", "wandb", "comet"),
        "it writes inside the steps that are measured; the records have the loss of every step",
    ),
    "tensor_parallel": "`axes.tensor_parallel` shares the weights of blocks, and the batch identity knows of it",
    "torch_autocast": "the study's `precision` says what is computed in which format",
    "amp": "the study's `precision` says what is computed in which format",
}


def parse(text: str, where: str) -> dict[str, Any]:
    """Read DeepSpeed's dialect: hjson (comments, trailing commas, bare words), duplicate keys refused.

    Raises:
        UsageError: broken text (with the line), a duplicate key, or a document that is not an object.
    """
    try:
        document = hjson.loads(text.removeprefix("﻿"), object_pairs_hook=_without_duplicates)
    except hjson.HjsonDecodeError as error:
        hint = "DeepSpeed reads this file with hjson, to which a bare word such as True runs to the end of its line"
        raise UsageError(f"{where}, line {error.lineno}: {error.msg}", hint) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} cannot be read: {error}") from None
    if not isinstance(document, dict):
        raise UsageError(f"{where} holds a {type(document).__name__}, not an object of DeepSpeed keys")
    return document


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"DeepSpeed key `{shown(twice)}` is given twice")
    return document


def read_file(path: Path) -> dict[str, Any]:
    """Read a DeepSpeed JSON file.

    Raises:
        UsageError: no such file, not text, or broken.
    """
    try:
        text = read_text(path)
    except ValueError as error:
        raise UsageError(f"cannot read DeepSpeed file `{shown(str(path))}`: {error}") from None
    return parse(text, f"`{shown(path.name)}`")


def check_keys(document: dict[str, Any], where: str) -> None:
    """Refuse keys DeepSpeed never reads, values of the wrong kind, and keys that would falsify a measurement.

    Raises:
        UsageError: with the nearest key that exists.
    """
    known = known_keys()
    for key, value in document.items():
        if key not in known["top_level"]:
            raise unknown_key(key, f"{where}: DeepSpeed would ignore it silently", known["top_level"])
        if key in _REFUSED and not _is_off(value):
            raise UsageError(f"DeepSpeed key `{key}` in {where} cannot be used here: {_REFUSED[key]}")
        _check_value(key, value, where)
    if document.get("bf16") is not None and document.get("bfloat16") is not None:
        raise UsageError(f"`bf16` and `bfloat16` in {where} are the same DeepSpeed key", "remove one of the two")
    sections = {**known["sections"], "bfloat16": known["sections"]["bf16"], "optimizer": _OPTIMIZER_KEYS}
    for section, names in sections.items():
        value = get_path(document, section)
        if value is not None and not isinstance(value, dict):
            raise UsageError(f"DeepSpeed key `{section}` in {where} is {value!r}, not a table")
        for name in value or ():
            if name not in names:
                raise unknown_key(name, f"`{section}` of {where}", names)
    buckets.check(document, where)
    offload.check(document, where)


def _is_off(value: Any) -> bool:
    return value in (None, False, {}) or (isinstance(value, dict) and value.get("enabled") is False)


def _check_value(path: str, value: Any, where: str) -> None:
    """Refuse what is no JSON value, and words that are meant as something else."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_value(f"{path}.{name}", inner, where)
    elif isinstance(value, list):
        for inner in value:
            _check_value(path, inner, where)
    else:
        wrong = _wrong(value)
        if wrong:
            raise UsageError(f"DeepSpeed key `{shown(path)}` in {where} is `{shown(str(value))}`, which is {wrong}")


def _wrong(value: Any) -> str | None:
    if isinstance(value, str):
        word = value.rstrip(", ")
        if word in ("True", "False", "None"):
            return "a word: JSON has true, false and null"
        if word == "auto":
            return "Hugging Face's, not DeepSpeed's"
        return "a bare word that took the comma along; put it in quotes" if word != value.rstrip() else None
    if isinstance(value, float) and not math.isfinite(value):
        return "not a finite number"
    return None if value is None or isinstance(value, bool | int | float) else "not a JSON value"


def check_swept(key: str, values: Sequence[Any]) -> None:
    """Check a DeepSpeed key that varies from `[axes]`.

    Args:
        key: its dotted path inside DeepSpeed's JSON.
        values: what it takes, one after the other.

    Raises:
        UsageError: as `check_keys`; a table; a key that the study has under its own name.
    """
    mine = {shared.deepspeed: shared.study for shared in SHARED}
    mine |= {f"{section}.enabled": "axes.precision" for section in (*_PRECISIONS, "bfloat16")}
    if key in mine:
        raise UsageError(f"`deepspeed.{key}` cannot vary: the study has it as `{mine[key]}`", f"vary `{mine[key]}`")
    if key == "file":
        raise UsageError("`deepspeed.file` cannot vary", "vary the keys in which the files differ")
    for value in values:
        if isinstance(value, dict):
            raise UsageError(f"`deepspeed.{shown(key)}` = {value!r} is a table", "vary its keys one by one")
        document: dict[str, Any] = {}
        set_path(document, key, value)
        check_keys(document, "`[axes]`")


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
    rest = {key: copy.deepcopy(value) for key, value in document.items() if not (key in _REFUSED and _is_off(value))}
    if "bfloat16" in rest:
        rest["bf16"] = rest.pop("bfloat16")
    swept = get_path(tree, "axes.swept") or {}
    notes, conflicts = [], []
    for shared, value in _shared_values(rest, where):
        mine = swept.get(shared.study, get_path(tree, shared.study))
        if mine is None:
            set_path(tree, shared.study, value)
            notes.append(f"`{shared.study}` = {value} from {where} (`{shared.deepspeed}`)")
        elif mine not in (value, [value]):
            conflicts.append(f"`{shared.deepspeed}` = {value} but the study has `{shared.study}` = {mine}")
    conflicts += _switched_off(rest, get_path(tree, "axes.precision"))
    if conflicts:
        raise UsageError(f"{where} and the study disagree: " + "; ".join(conflicts), "remove one of the two")
    # An emptied table says nothing, but left in it would make another run of the one asked for in the study's words.
    return {key: value for key, value in rest.items() if value not in (None, {})}, notes


def _shared_values(rest: dict[str, Any], where: str) -> Iterator[tuple[Shared, Any]]:
    """Take the keys both sides know out of `rest` and give them in the study's words."""
    for shared in SHARED:
        value = get_path(rest, shared.deepspeed)
        if value is None:
            continue
        if isinstance(value, list | dict):
            raise UsageError(f"DeepSpeed key `{shared.deepspeed}` in {where} is {value!r}, not one value")
        _remove(rest, shared.deepspeed)
        if shared.deepspeed == "optimizer.type":
            value = _optimizer_name(value)
        yield shared, value
    _require_nothing_left(rest.pop("optimizer", None) or {}, where)
    enabled = [name for name in _PRECISIONS if _enabled(rest, name, where)]
    if len(enabled) > 1:
        raise UsageError(f"`bf16` and `fp16` are both enabled in {where}", "enable one of the two")
    for section in enabled:
        _remove(rest, f"{section}.enabled")
        yield Shared(f"{section}.enabled", "axes.precision"), section


def _enabled(rest: dict[str, Any], section: str, where: str) -> bool:
    value = get_path(rest, f"{section}.enabled")
    if value is not None and not isinstance(value, bool):
        raise UsageError(f"DeepSpeed key `{section}.enabled` in {where} is {value!r}, not true or false")
    return bool(value)


def _switched_off(rest: dict[str, Any], asked: Any) -> Iterator[str]:
    """Drop the precisions that DeepSpeed's JSON switches off, with a conflict for each that the study asks for."""
    for section in _PRECISIONS:
        if get_path(rest, f"{section}.enabled") is False:
            _remove(rest, f"{section}.enabled")
            if asked is not None and section in ([asked] if isinstance(asked, str) else asked):
                yield f"`{section}.enabled` = false but the study has `axes.precision` = {asked}"


def _require_nothing_left(section: dict[str, Any], where: str) -> None:
    params = section.get("params") or {}
    if not isinstance(params, dict):
        raise UsageError(f"DeepSpeed key `optimizer.params` in {where} is {params!r}, not a table")
    left = {name: value for name, value in params.items() if value != _TORCH_DEFAULTS.get(name)}
    if left:
        named = ", ".join(f"`{shown(name)}` = {value}" for name, value in left.items())
        raise UsageError(f"DeepSpeed optimizer parameters {named} in {where} have no study key", "remove them")


def _optimizer_name(value: Any) -> str:
    name = _OPTIMIZERS.get(str(value).lower())
    if name is None:
        hint = _NEAR_OPTIMIZERS.get(str(value).lower())
        raise UsageError(f"DeepSpeed optimizer type `{value}` is not one of {', '.join(_OPTIMIZERS)}", hint)
    return name


def _remove(tree: dict[str, Any], path: str) -> None:
    *tables, last = path.split(".")
    for table in tables:
        tree = tree[table]
    del tree[last]
