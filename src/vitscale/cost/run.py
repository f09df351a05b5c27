"""What one resolved run costs: the closed forms of this room, fed with a RunSpec."""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vitscale.config import offload
from vitscale.config.knobs import EngineSection
from vitscale.config.runspec import RunSpec
from vitscale.cost import fsdp, recompute, sequence, tensor
from vitscale.cost.calibrated import CalibrationFile, FittedSeries, fitted_for, fitted_step
from vitscale.cost.collectives import Collective, LinkPair, Links, step_collectives
from vitscale.cost.compute import Device
from vitscale.cost.device_memory import DeviceNeed, device_need, workspace_bytes
from vitscale.cost.memory import RankMemory, bucket_settings, rank_memory, zero_keys
from vitscale.cost.models import ViTShape, shape
from vitscale.cost.offload import moved
from vitscale.cost.optimizers import moment_elements
from vitscale.cost.step import StepEstimate, estimate_step
from vitscale.cost.vit import AUTOCAST, autocast_under_zero3, parameter_tensors, parameters, training_flop
from vitscale.hardware import catalog

LIKELY = 0.5
"""A run fits from this probability on: where the median of what it needs is there."""


@dataclass(frozen=True)
class Machinery:
    """What the arithmetic runs on, as far as it is known; None is not known, and what hangs on it becomes None."""

    device: Device | None
    """Data-sheet figures of one device."""
    links: LinkPair
    """What connects the ranks of the run."""
    memory_bytes: int | None
    """Memory one rank may use."""
    flop_per_s: float | None = None
    """Training rate of one rank, in place of a data sheet's peak."""
    fitted: FittedSeries | None = None
    """What was fitted to measured runs like these, in place of data sheets."""


@dataclass(frozen=True)
class RunEstimate:
    """One run before it is started. Nothing in it was measured on this run."""

    parameters: int
    flop_per_step: int
    """Of all ranks together, matrix products only."""
    memory: RankMemory
    """Of one rank; a lower bound of what a device tool shows."""
    need: DeviceNeed
    """Of one rank, with workspace, slack and context."""
    memory_limit_bytes: int | None
    collectives: tuple[Collective, ...]
    """Of one optimizer step."""
    step: StepEstimate

    @property
    def fit_probability(self) -> float | None:
        """Probability that one rank's memory is enough; None where it is not known."""
        limit = self.memory_limit_bytes
        return None if limit is None else self.need.fit_probability(limit)

    @property
    def fits(self) -> bool | None:
        """Whether one rank's memory is more likely enough than not; None where it is not known."""
        return None if self.fit_probability is None else self.fit_probability >= LIKELY

    def document(self) -> dict[str, Any]:
        """As JSON: the `estimate` of a run in `plan.json`."""
        state = self.memory.model_state
        return {
            "parameters": self.parameters,
            "flop_per_step": self.flop_per_step,
            "memory_bytes": {
                "parameters": state.parameters_bytes,
                "gradients": state.gradients_bytes,
                "optimizer": state.optimizer_bytes,
                "activations": self.memory.activations_bytes,
                "buckets": self.memory.buckets_bytes,
                "total": self.memory.total_bytes,
                "host": self.memory.host_bytes,
            },
            "memory_needed_bytes": {
                "median": self.need.median_bytes,
                "low95": self.need.low95_bytes,
                "high95": self.need.high95_bytes,
            },
            "memory_limit_bytes": self.memory_limit_bytes,
            "fits": self.fits,
            "fit_probability": self.fit_probability,
            "collectives": [
                {"operation": one.operation, "calls": one.calls, "bytes": one.bytes} for one in self.collectives
            ],
            "step_s": self.step.step_s,
            "communication_s": self.step.communication_s,
            "images_per_s": self.step.images_per_s,
            "assumptions": list(self.step.assumptions),
        }


def simulated_machinery(spec: RunSpec, calibration: CalibrationFile | None = None) -> Machinery:
    """What a simulated run runs on: a device of the catalog, or the CPU of a calibration, whose memory is not known.

    Raises:
        UsageError: the calibration has no series of such runs.
    """
    assert spec.simulated_device is not None
    fitted = None if calibration is None else fitted_for(calibration, spec)
    if spec.simulated_device == catalog.CPU:
        return Machinery(None, Links(None, None), None, fitted=fitted)
    return replace(of_catalog(spec.simulated_device, spec.ranks_per_node), fitted=fitted)


def of_catalog(name: str, ranks_per_node: int) -> Machinery:
    """A device by its catalog name."""
    device = catalog.device(name)
    return Machinery(device, device.links(ranks_per_node), device.memory_bytes)


def estimate_run(spec: RunSpec, machinery: Machinery) -> RunEstimate:
    """Estimate memory, communication and time of a run; the user's own DeepSpeed keys that change them are read.

    Of unequal shares the largest one decides; a `proportional` split is not known yet and is taken as the even one.
    """
    model = shape(spec.model.name, **spec.model.sizes)
    most = max(spec.micro_batches)
    batch: Mapping[str, Any] = {
        "micro_batch": most,
        "grad_accum": spec.grad_accum,
        "precision": spec.precision,
    }
    exchanges = sequence.collectives(model, **batch, ranks=spec.sequence_parallel or 1)
    exchanges += tensor.collectives(model, **batch, ranks=spec.tensor_parallel or 1)
    own = tensor.part(model, spec.tensor_parallel or 1)
    owner = spec.engine if spec.zero_stage is None else "deepspeed"  # whoever drives it
    engine: Mapping[str, Any] = {"engine": owner, "zero_stage": spec.zero_stage, "precision": spec.precision}
    memory, collectives = _of_fsdp(spec, own) if spec.engine == "fsdp" else _of_replicas(spec, own, engine)
    away = offload.asked(spec.deepspeed)
    if any(away):
        keys: Mapping[str, Any] = {"zero_stage": spec.zero_stage, "precision": spec.precision}
        memory = moved(memory, parameter_tensors(own), away, **keys, data_parallel=_sharing(spec))
    estimate = RunEstimate(
        parameters=parameters(model),
        flop_per_step=spec.global_batch * training_flop(model),
        memory=memory,
        need=device_need(spec.device, memory.total_bytes + _workspace_bytes(spec, own)),
        memory_limit_bytes=machinery.memory_bytes,
        collectives=collectives + exchanges,
        step=estimate_step(
            model,
            **_sender(spec, engine),
            collectives=collectives,
            micro_batch=most,
            grad_accum=spec.grad_accum,
            data_parallel=spec.data_parallel,
            sequence_parallel=spec.sequence_parallel or 1,
            tensor_parallel=spec.tensor_parallel or 1,
            device=machinery.device,
            links=machinery.links,
            ranks_per_node=spec.ranks_per_node,
            optimizer=spec.optimizer.name,
            fused_attention=_fused(spec),
            flop_per_s=machinery.flop_per_s,
            overlap_comm=zero_keys(spec.deepspeed).get("overlap_comm"),
            reshard_after_forward=spec.fsdp is None or spec.fsdp.reshard_after_forward,
            activation_checkpointing=_checkpointing(spec),
        ),
    )
    if machinery.fitted is not None:
        return replace(estimate, step=fitted_step(machinery.fitted, spec))
    if any(away):
        return replace(estimate, step=_untimed(estimate.step))
    step_s = estimate.step.step_s
    return replace(estimate, step=replace(estimate.step, images_per_s=spec.global_batch / step_s if step_s else None))


def _sender(spec: RunSpec, engine: Mapping[str, Any]) -> Mapping[str, Any]:
    """Like whom a run sends: gradients of ZeRO-0 with `engine.overlap_reduce` travel as DDP's do."""
    return {**engine, "engine": "ddp", "zero_stage": None} if spec.knobs and spec.knobs.overlap_reduce else engine


def most_images(spec: RunSpec, memory_bytes: int, limit: int) -> int:
    """The largest micro-batch up to `limit` that a rank with so much memory more likely holds than not; 0 where none.

    Args:
        spec: the run; its shares are equal, or not known yet.
        memory_bytes: what one rank may use.
        limit: the largest one to look at.
    """
    known = Machinery(None, Links(None, None), memory_bytes)

    def too_large(micro_batch: int) -> bool:
        return not estimate_run(spec.model_copy(update={"micro_batch": micro_batch}), known).fits

    return bisect.bisect_left(range(1, limit + 1), True, key=too_large)


def _untimed(step: StepEstimate) -> StepEstimate:
    """The update of offloaded state is the host's, over a link that no form here knows."""
    told = "offload: the update on the host and its transfers are not estimated"
    return replace(step, optimizer_s=None, step_s=None, images_per_s=None, assumptions=(*step.assumptions, told))


def _sharing(spec: RunSpec) -> int:
    """Ranks over which the engine shards and reduces: all that have the same part of the weights."""
    return spec.world_size // (spec.tensor_parallel or 1)


def _of_fsdp(spec: RunSpec, model: ViTShape) -> tuple[RankMemory, tuple[Collective, ...]]:
    assert spec.fsdp is not None
    keys: Mapping[str, Any] = {
        "precision": spec.precision,
        "data_parallel": _sharing(spec),
        "grad_accum": spec.grad_accum,
        "reshard_after_forward": spec.fsdp.reshard_after_forward,
    }
    memory = fsdp.rank_memory(
        model,
        _activation_bytes(spec, model),
        optimizer=spec.optimizer.name,
        **keys,
    )
    return memory, fsdp.step_collectives(model, **keys)


def _of_replicas(
    spec: RunSpec, model: ViTShape, engine: Mapping[str, Any]
) -> tuple[RankMemory, tuple[Collective, ...]]:
    """DDP, a single rank, and DeepSpeed, whose ZeRO stages share out what the replicas hold."""
    tensors = parameter_tensors(model)
    zero = zero_keys(spec.deepspeed)
    beside = bool(spec.knobs and spec.knobs.overlap_reduce)
    buckets = bucket_settings(zero, sum(tensors), overlap_reduce=beside)
    memory = rank_memory(
        tensors,
        _activation_bytes(spec, model),
        **engine,
        **buckets,
        data_parallel=_sharing(spec),
        moments=moment_elements(model, spec.optimizer.name),
        device=spec.device,
        overlap_comm=zero.get("overlap_comm"),
        gradient_as_bucket_view=spec.knobs is None or spec.knobs.gradient_as_bucket_view is not False,
    )
    sent = step_collectives(
        tensors,
        **_sender(spec, engine),
        **buckets,
        **_ddp_keys(spec),
        data_parallel=_sharing(spec),
        grad_accum=spec.grad_accum,
    )
    return memory, sent


def _ddp_keys(spec: RunSpec) -> Mapping[str, Any]:
    knobs = spec.knobs or EngineSection()
    bucket_bytes = None if knobs.bucket_mb is None else round(knobs.bucket_mb * 2**20)
    return {"ddp_bucket_bytes": bucket_bytes, "ddp_hook": knobs.ddp_hook}


def _checkpointing(spec: RunSpec) -> bool:
    return spec.knobs is not None and spec.knobs.activation_checkpointing is True


def _activation_bytes(spec: RunSpec, model: ViTShape) -> int:
    form = recompute.activation_bytes if _checkpointing(spec) else sequence.activation_bytes
    ranks = spec.sequence_parallel or 1
    kept_bytes = form(model, max(spec.micro_batches), spec.precision, ranks, fused_attention=_fused(spec))
    own_linear = spec.zero_stage == 3 and zero_keys(spec.deepspeed).get("memory_efficient_linear", True)
    if spec.precision == AUTOCAST and own_linear:
        whole = replace(model, depth=1) if _checkpointing(spec) else model
        kept_bytes += autocast_under_zero3(whole, max(spec.micro_batches), sequence.shares(model.tokens, ranks)[0])
    return kept_bytes


def _workspace_bytes(spec: RunSpec, model: ViTShape) -> int:
    most, ranks = max(spec.micro_batches), spec.sequence_parallel or 1
    return workspace_bytes(model, most, spec.precision, fused_attention=_fused(spec), ranks=ranks)


def _fused(spec: RunSpec) -> bool:
    """Whether the weights of attention are never written."""
    return spec.knobs is None or spec.knobs.sdpa != "math"
