"""What is known of a run whoever ran it: a RunSpec tells all of it, an imported source some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vitscale.config.imported import ImportedSpec
from vitscale.config.runspec import RunSpec

Spec = RunSpec | ImportedSpec


@dataclass(frozen=True)
class Facts:
    """Settings of a run; None is not told."""

    protocol: str | None
    model: str | None
    dataset: str | None
    optimizer: str | None
    world_size: int
    nodes: int | None
    engine: str | None
    zero_stage: int | None
    micro_batch: int | None
    grad_accum: int | None
    global_batch: int | None
    precision: str | None
    images_per_epoch: int | None
    """Over all ranks."""
    device_kind: str | None
    """`cpu` or `cuda`; None where the run is imported."""
    device_name: str | None
    """As an imported source names it; of other runs the manifests tell."""
    oversubscribed: bool
    told_protocol: str | None
    """What an imported source calls its protocol."""


def facts(specs: Mapping[str, Spec]) -> dict[str, Facts]:
    """By run_id. Protocols of imported runs are inferred from the runs of their series."""
    by_series: dict[str, list[ImportedSpec]] = {}
    for spec in specs.values():
        if isinstance(spec, ImportedSpec):
            by_series.setdefault(spec.series, []).append(spec)
    protocols = {series: infer_protocol(found) for series, found in by_series.items()}
    return {
        run_id: _imported(spec, protocols[spec.series]) if isinstance(spec, ImportedSpec) else _asked(spec)
        for run_id, spec in specs.items()
    }


def infer_protocol(series: Sequence[ImportedSpec]) -> str | None:
    """Protocol of a series by what stays equal in it; None where nothing tells, as with a single world size.

    1. Equal global batch: `strong`.
    2. Equal micro-batch and images per epoch: `strong_fixed_micro`.
    3. Equal micro-batch and images per epoch over world size: `weak`.
    """
    if len({spec.world_size for spec in series}) < 2:
        return None
    if _equal([spec.global_batch for spec in series]):
        return "strong"
    if not _equal([spec.micro_batch for spec in series]):
        return None
    if _equal([spec.images_per_epoch for spec in series]):
        return "strong_fixed_micro"
    if _equal([spec.images_per_epoch and spec.images_per_epoch / spec.world_size for spec in series]):
        return "weak"
    return None


def _equal(values: Sequence[float | None]) -> bool:
    """Whether all are told and the same."""
    return None not in values and len(set(values)) == 1


def _asked(spec: RunSpec) -> Facts:
    return Facts(
        protocol=spec.protocol,
        model=spec.model.name,
        dataset=spec.data.name,
        optimizer=spec.optimizer.name,
        world_size=spec.world_size,
        nodes=spec.nodes,
        engine=spec.engine,
        zero_stage=spec.zero_stage,
        micro_batch=spec.micro_batch,
        grad_accum=spec.grad_accum,
        global_batch=spec.global_batch,
        precision=spec.precision,
        images_per_epoch=spec.data.images,
        device_kind=spec.device,
        device_name=None,
        oversubscribed=spec.oversubscribed,
        told_protocol=None,
    )


def _global_batch(spec: ImportedSpec) -> int | None:
    """As told, else the batch identity's where its other members are told."""
    if spec.global_batch is not None or spec.micro_batch is None or spec.grad_accum is None:
        return spec.global_batch
    return spec.micro_batch * spec.grad_accum * spec.world_size


def _imported(spec: ImportedSpec, protocol: str | None) -> Facts:
    return Facts(
        protocol=protocol,
        model=spec.model,
        dataset=spec.dataset,
        optimizer=spec.optimizer,
        world_size=spec.world_size,
        nodes=spec.nodes,
        engine=spec.engine,
        zero_stage=spec.zero_stage,
        micro_batch=spec.micro_batch,
        grad_accum=spec.grad_accum,
        global_batch=_global_batch(spec),
        precision=spec.precision,
        images_per_epoch=spec.images_per_epoch,
        device_kind=None,
        device_name=spec.device,
        oversubscribed=False,
        told_protocol=spec.protocol,
    )
