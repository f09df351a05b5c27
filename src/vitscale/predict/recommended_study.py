"""A recommendation as a study file that `vitscale run` and `vitscale train` take."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping
from typing import Any

from vitscale.config.knobs import EngineSection
from vitscale.cost.calibrated import OF_ZERO
from vitscale.predict.candidates import Candidate
from vitscale.predict.from_source import Source

FILE = "recommended.toml"
"""Its name in a results folder."""

_KEPT = ("model", "data", "optimizer", "train", "engine", "deepspeed", "fsdp", "measure")


def study_text(one: Candidate, source: Source) -> str:
    """The study of one candidate; what was resolved of the measured study stays."""
    at, way = one.layout, one.way
    axes: dict[str, Any] = {
        "world_size": at.world_size,
        "nodes": at.nodes if at.nodes > 1 else None,
        "engine": way.engine,
        "zero_stage": way.zero_stage,
        "precision": way.precision,
        "global_batch": round(at.global_batch),
        "grad_accum": at.grad_accum,
    }
    head = {
        "schema_version": 1,
        "name": "recommended",
        "question": f"Does the recommended configuration keep its promise on {at.world_size} x {one.pool.device}?",
        "protocol": "strong",
    }
    sections: dict[str, Mapping[str, Any]] = {"axes": axes}
    for name in _KEPT:
        sections[name] = source.resolved.get(name) or {}
    shape = source.shape
    sections["model"] = sections["model"] or {
        "name": shape.name,
        "img_size": shape.img_size,
        "patch_size": shape.patch_size,
    }
    sections["data"] = sections["data"] or {"name": "synthetic"}
    # What it was predicted with, where the measured study varies it.
    knobs = source.knobs(way)
    sections["engine"] = {**sections["engine"], **_named(knobs, EngineSection.model_fields.keys())}
    sections["fsdp"] = {**sections["fsdp"], **_named(knobs, ("reshard_after_forward",))}
    zero = {f"zero_optimization.{key}": value for key, value in _named(knobs, OF_ZERO).items()}
    sections["deepspeed"] = {**dict(_flat(sections["deepspeed"])), **zero}
    lines = [*_table(head)]
    for name, values in sections.items():
        if told := list(_table(values)):
            lines += ["", f"[{name}]", *told]
    return "\n".join(lines) + "\n"


def _named(knobs: Mapping[str, Any], names: Container[str]) -> dict[str, Any]:
    return {name: value for name, value in knobs.items() if name in names}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested tables by dotted keys."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _table(values: Mapping[str, Any]) -> list[str]:
    # JSON's strings, numbers, booleans and lists of them are TOML's.
    return [
        f"{key} = {json.dumps(value)}"
        for key, value in values.items()
        if value is not None and not isinstance(value, Mapping)
    ]
