"""What ranks hold by class, as it was counted, beside the plan's closed forms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vitscale.analysis.load import Run, StudyData
from vitscale.analysis.result import Bytes, Finding, MemoryResult, RunResult
from vitscale.config.runspec import RunSpec
from vitscale.cost.fit import Largest, largest
from vitscale.units import percent, size

FAR = 0.10
"""`memory_differs`: a class is this far from its closed form."""

SMALL = 0.01
"""`memory_differs`: a difference below this share of all classes together does not matter."""


def derived(plan: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """run_id -> class -> bytes, of each planned run."""
    estimates = {str(run["run_id"]): run.get("estimate") or {} for run in plan.get("runs", ())}
    return {run_id: one["memory_bytes"] for run_id, one in estimates.items() if "memory_bytes" in one}


def memory(run: Run, closed_form: Mapping[str, int]) -> MemoryResult:
    """Every class of a run; what its records do not tell is null."""
    counted = [device.memory for device in run.devices if device.memory is not None]
    classes = {}
    for name in MemoryResult.model_fields:
        sizes = [getattr(one, f"{name}_bytes") for one in counted]
        form = closed_form.get(name)
        if form is not None and name == "activations":
            form = round(form * _more_images(run))
        classes[name] = Bytes(measured_bytes=max(sizes, default=None), derived_bytes=form)
    return MemoryResult(**classes)


def _more_images(run: Run) -> float:
    """Images of the largest forward pass over those that the plan expected: it knows no `proportional` split."""
    splits = [one.record.manifest.split for one in run.counted if one.record.manifest]
    most = max((max(one.at_once) for one in splits if one is not None), default=None)
    return most / max(run.spec.micro_batches) if most and isinstance(run.spec, RunSpec) else 1.0


def largest_models(study: StudyData) -> dict[str, Largest]:
    """run_id -> the largest models that fit, in a study of several ZeRO stages; elsewhere nobody asks."""
    specs = {run.run_id: run.spec for run in study.runs if isinstance(run.spec, RunSpec)}
    if len({spec.zero_stage for spec in specs.values()} - {None}) < 2:
        return {}
    estimates = {str(run["run_id"]): run.get("estimate") or {} for run in study.results.plan.get("runs", ())}
    limits = {run_id: one.get("memory_limit_bytes") for run_id, one in estimates.items()}
    return {run_id: largest(spec, limit) for run_id, spec in specs.items() if (limit := limits.get(run_id))}


def find(study: StudyData, results: Mapping[str, RunResult]) -> Iterator[Finding]:
    """Runs in which a class is far from its closed form."""
    for run in study.runs:
        apart = list(_apart(results[run.run_id].memory, _makes_again(run)))
        if apart:
            yield Finding(
                kind="memory_differs",
                severity="note",
                evidence=f"{study.labels[run.run_id]}: a rank's {'; '.join(apart)}.",
                hint="what the plan says of memory is off by as much for runs like it",
                runs=(run.run_id,),
            )


def _makes_again(run: Run) -> bool:
    """Whether backward makes a block again: the closed form has it, and what is counted is kept from forward on."""
    return isinstance(run.spec, RunSpec) and bool(run.spec.knobs and run.spec.knobs.activation_checkpointing)


def _apart(found: MemoryResult, makes_again: bool) -> Iterator[str]:
    classes: dict[str, Bytes] = {name: getattr(found, name) for name in MemoryResult.model_fields}
    total = sum(one.derived_bytes or 0 for one in classes.values())
    for name, one in classes.items():
        if one.measured_bytes is None or one.derived_bytes is None or (name == "activations" and makes_again):
            continue
        gap = one.measured_bytes - one.derived_bytes
        if abs(gap) > max(FAR * one.derived_bytes, SMALL * total):
            share = f" ({percent(gap / one.derived_bytes)} off)" if one.derived_bytes else ""
            yield f"{name} take {size(one.measured_bytes)}, by the closed form {size(one.derived_bytes)}{share}"
