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
_OFFLOADED = ("zero_optimization.offload_optimizer", "zero_optimization.offload_param")


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
    predicted = _as_predicted(one, source)
    sections |= {**predicted, "axes": {**axes, **predicted["axes"]}}
    lines = [*_table(head)]
    for name, values in sections.items():
        if told := list(_table(values)):
            lines += ["", f"[{name}]", *told]
    return "\n".join(lines) + "\n"


def _as_predicted(one: Candidate, source: Source) -> dict[str, Mapping[str, Any]]:
    """The tables of knobs: what the measured study varies as the nearest series has it, the rest as the study has it.

    Where the engine or stage is not that of the series, what another one may refuse is left out.
    """
    way, near = one.way, source.nearest(one.way) if source.series else None
    knobs: Mapping[str, Any] = {} if near is None else near.knobs
    swept = (source.resolved.get("axes") or {}).get("swept") or {}
    engine, fsdp, deepspeed = (
        {key: value for key, value in _flat(source.resolved.get(name) or {}) if f"{name}.{key}" not in swept}
        for name in ("engine", "fsdp", "deepspeed")
    )
    engine |= _named(knobs, EngineSection.model_fields.keys())
    fsdp |= _named(knobs, ("reshard_after_forward",))
    deepspeed |= {f"zero_optimization.{key}": value for key, value in _named(knobs, OF_ZERO).items()}
    if near is not None and (near.engine, near.zero_stage) == (way.engine, way.zero_stage):
        away = zip(_OFFLOADED, knobs.get("offload", ()), strict=False)
        deepspeed |= {f"{table}.device": device for table, device in away if device}
        groups = _named(knobs, ("sequence_parallel", "tensor_parallel"))
        axes = {name: ranks for name, ranks in groups.items() if one.layout.world_size % ranks == 0}
        return {"axes": axes, "engine": engine, "fsdp": fsdp, "deepspeed": deepspeed}
    deepspeed = {key: value for key, value in deepspeed.items() if not key.startswith(_OFFLOADED)}
    if way.zero_stage == 3:
        engine = {key: value for key, value in engine.items() if key not in ("compile", "compile_mode")}
    return {"axes": {}, "engine": engine, "fsdp": fsdp, "deepspeed": deepspeed}


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
