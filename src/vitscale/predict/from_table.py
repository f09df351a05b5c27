"""Series from a table in the format of `vitscale import table`, one row per run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vitscale.analysis.facts import facts
from vitscale.config.imported import ImportedSpec
from vitscale.cost.scaling import Layout
from vitscale.errors import UsageError
from vitscale.importers import table
from vitscale.importers.found import FoundRun
from vitscale.importers.source import sources
from vitscale.predict.checks import checked
from vitscale.predict.series import Observation, Series

_SAME = ("device", "engine", "zero_stage", "model", "precision", "protocol", "optimizer")

Makers = Mapping[str, Callable[[], Series]]
"""Series by name, not looked at yet: each refuses what it cannot mean when it is made."""


def makers(path: Path) -> Makers:
    """The series of a table by name.

    Raises:
        UsageError: the table has no rows, or one that cannot be read.
    """
    runs = table.read(sources([path])).runs
    if not runs:
        raise UsageError(f"`{path.name}` has no rows", "one row per run, below the header")
    grouped: dict[str, list[FoundRun]] = {}
    for run in runs:
        grouped.setdefault(run.spec.series, []).append(run)
    protocols = facts({str(index): run.spec for index, run in enumerate(runs)})
    by_series = {one.spec.series: protocols[str(index)].protocol for index, one in enumerate(runs)}

    def make(name: str) -> Series:
        return checked(_told(name, grouped[name], by_series[name]))

    return {name: partial(make, name) for name in grouped}


def _told(name: str, runs: Sequence[FoundRun], protocol: str | None) -> Series:
    specs = [run.spec for run in runs]
    remarks: list[str] = []
    same = {field: one_of(name, field, [getattr(spec, field) for spec in specs], remarks) for field in _SAME}
    same["protocol"] = protocol or same["protocol"]
    observations = tuple(_observation(run, remarks) for run in runs)
    return Series(
        name,
        tuple(sorted(observations, key=lambda one: (one.layout.world_size, one.layout.nodes))),
        images_per_epoch=max((spec.images_per_epoch or 0 for spec in specs), default=0) or None,
        batch_told=all(spec.micro_batch or spec.global_batch for spec in specs),
        remarks=tuple(dict.fromkeys(remarks)),
        **same,
    )


def one_of(series: str, field: str, values: Sequence[Any], remarks: list[str]) -> Any:
    """What all runs of a series have; of runs that do not tell it, that of the others, which is remarked.

    Raises:
        UsageError: they differ.
    """
    told = {value for value in values if value is not None}
    if len(told) > 1:
        raise UsageError(
            f"series `{series}` mixes {field}s: {', '.join(sorted(map(str, told)))}",
            "a series differs in world size only: give each its own name in the column `series`",
        )
    found, blank = next(iter(told), None), sum(value is None for value in values)
    if told and blank:
        where = f"{blank} of {len(values)} runs"
        remarks.append(f"{field.replace('_', ' ')} is not told of {where}: taken as {found} there too")
    return found


def _observation(run: FoundRun, remarks: list[str]) -> Observation:
    spec, told = run.spec, run.aggregate
    assert told is not None
    layout = _layout(spec, remarks)
    step_s = told.step_s
    if told.epoch_s is not None and told.images_per_epoch is not None:
        epoch_step_s = told.epoch_s * layout.global_batch / told.images_per_epoch
        _agree(spec, step_s, epoch_step_s)
        # An epoch holds pauses between steps too, which a user waits for as well.
        step_s = epoch_step_s
    elif told.epoch_s is not None and step_s is None:
        raise UsageError(
            f"`{spec.file}:{spec.line}` has `epoch_s` without `images_per_epoch`", "add it, or the time of a step"
        )
    parts = [one for one in (told.forward_s, told.backward_compute_s) if one is not None]
    return Observation(
        layout,
        step_s,
        compute_s=sum(parts) if len(parts) == 2 else None,
        comm_s=told.comm_and_wait_s or None,
        memory_bytes=None if told.device_memory_used_bytes is None else int(told.device_memory_used_bytes),
        images_per_epoch=spec.images_per_epoch,
    )


def _agree(spec: ImportedSpec, step_s: float | None, epoch_step_s: float) -> None:
    if step_s is None or 1 / 3 < step_s / epoch_step_s < 3:
        return
    ratio = step_s / epoch_step_s
    unit = "milliseconds" if 300 < ratio < 3000 else "another unit or batch"
    raise UsageError(
        f"`{spec.file}:{spec.line}`: `step_s` is {step_s:g}, but epoch, images and batch give {epoch_step_s:.4g} s",
        f"is one of them in {unit}? Times are in seconds",
    )


def _layout(spec: ImportedSpec, remarks: list[str]) -> Layout:
    size = spec.world_size
    nodes = spec.nodes or (-(-size // spec.ranks_per_node) if spec.ranks_per_node else 1)
    if spec.nodes is None and spec.ranks_per_node is None:
        remarks.append("nodes are not told: taken as one")
    accum, micro = spec.grad_accum, float(spec.micro_batch) if spec.micro_batch else None
    if micro is None and spec.global_batch is not None:
        micro = spec.global_batch / size / (accum or 1)
    if accum is None and micro is not None and spec.global_batch is not None:
        accum = max(1, round(spec.global_batch / size / micro))
    if micro is None:
        remarks.append("the micro-batch is not told: taken as the same in every run")
    return Layout(size, nodes, micro or 1.0, accum or 1)
