"""Memory of a rank at an asked layout, by the closed forms of `cost`, for a series that names a timm ViT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from vitscale.config.study import EngineName, OptimizerName
from vitscale.cost import fsdp, models, recompute, sequence
from vitscale.cost.device_memory import DeviceNeed, device_need, workspace_bytes
from vitscale.cost.memory import RankMemory, bucket_settings, rank_memory
from vitscale.cost.models import ViTShape
from vitscale.cost.optimizers import moment_elements
from vitscale.cost.scaling import Layout
from vitscale.cost.vit import PRECISION_BYTES, parameter_tensors, parameters
from vitscale.errors import VitscaleError
from vitscale.predict.result import Memory, Quantiles
from vitscale.predict.series import UNTOLD_BATCH, Series

_ELSEWHERE = ("sequence_parallel", "tensor_parallel", "offload")


def shape_of(series: Series) -> ViTShape | None:
    """The series' model, or None where it is no timm ViT."""
    try:
        return models.shape(series.model or "", **series.sizes)
    except VitscaleError:
        return None


def parameter_count(series: Series) -> int | None:
    """Parameters of the series' model, or None where it is no timm ViT."""
    shape = shape_of(series)
    return None if shape is None else parameters(shape)


def untold(series: Series) -> str | None:
    """Why the memory of a series' ranks is not known; None where it is."""
    if not series.batch_told:
        return UNTOLD_BATCH
    if shape_of(series) is None:
        return "the model is no timm ViT"
    if (series.precision or "fp32") not in PRECISION_BYTES:
        return f"no form of memory is known for {series.precision}"
    if _engine(series) not in get_args(EngineName):
        return f"no form of memory is known for the engine {series.engine}"
    if optimizer_of(series) is None:
        return f"no form of memory is known for the optimizer {series.optimizer}"
    away = uncounted(series.knobs)
    return f"no form of memory is known with {', '.join(away)}" if away else None


def uncounted(knobs: Mapping[str, Any]) -> list[str]:
    """Knobs that are on and move or share what the forms here count as a rank's own."""
    return [knob for knob in _ELSEWHERE if knobs.get(knob)]


def memory_of(series: Series, layout: Layout, limit_bytes: int | None) -> Memory | None:
    """One rank of a layout on a device with that much memory; None where `untold` has a reason.

    AdamW's and fp32's where no optimizer or precision is told.
    """
    shape, optimizer = shape_of(series), optimizer_of(series)
    if untold(series) is not None or shape is None or optimizer is None:
        return None
    device = "cpu" if series.device == "cpu" else "cuda"
    way: Mapping[str, Any] = {"engine": _engine(series), "zero_stage": series.zero_stage}
    precision = series.precision or "fp32"
    held, need = rank_need(
        shape, layout, **way, precision=precision, optimizer=optimizer, device=device, knobs=series.knobs
    )
    ends = (need.median_bytes, need.low80_bytes, need.high80_bytes, need.low95_bytes, need.high95_bytes)
    fits = None if limit_bytes is None else need.fit_probability(limit_bytes)
    return Memory(held.total_bytes, Quantiles(*map(float, ends)), limit_bytes, fits)


def rank_need(
    shape: ViTShape,
    layout: Layout,
    *,
    engine: str,
    zero_stage: int | None,
    precision: str,
    optimizer: str,
    device: str,
    knobs: Mapping[str, Any],
) -> tuple[RankMemory, DeviceNeed]:
    """What one rank holds, and what its device has to have for it.

    Args:
        shape: the model.
        layout: ranks and the images of each.
        engine, zero_stage, precision, optimizer: as in a study.
        device: "cuda" or "cpu".
        knobs: as `cost.calibrated.knobs_of` names them; those that change the memory are read.
    """
    micro, fused = max(1, round(layout.micro_batch)), knobs.get("sdpa") != "math"
    if knobs.get("activation_checkpointing"):
        kept_bytes = recompute.activation_bytes(shape, micro, precision, 1, fused_attention=fused)
    else:
        kept_bytes = sequence.activation_bytes(shape, micro, precision, 1, fused_attention=fused)
    keys: Mapping[str, Any] = {"precision": precision, "data_parallel": layout.world_size}
    owner = "deepspeed" if engine == "accelerate_deepspeed" else engine
    if owner == "fsdp":
        held = fsdp.rank_memory(
            shape,
            kept_bytes,
            **keys,
            grad_accum=layout.grad_accum,
            optimizer=optimizer,
            reshard_after_forward=knobs.get("reshard_after_forward", True),
        )
    else:
        tensors, beside = parameter_tensors(shape), bool(knobs.get("overlap_reduce")) and not zero_stage
        held = rank_memory(
            tensors,
            kept_bytes,
            **keys,
            **bucket_settings(knobs, sum(tensors), overlap_reduce=beside),
            engine=owner,
            zero_stage=zero_stage,
            moments=moment_elements(shape, optimizer),
            device=device,
            overlap_comm=knobs.get("overlap_comm"),
            gradient_as_bucket_view=knobs.get("gradient_as_bucket_view") is not False,
        )
    working_bytes = workspace_bytes(shape, micro, precision, fused_attention=fused)
    return held, device_need(device, held.total_bytes + working_bytes)


def _engine(series: Series) -> str:
    return series.engine or ("ddp" if series.zero_stage is None else "deepspeed")


def optimizer_of(series: Series) -> str | None:
    """The optimizer by a study's name, AdamW where none is told; None where a source names one that is not known."""
    told = (series.optimizer or "adamw").lower()
    name = "adamw" if told == "adam" else told
    return name if name in get_args(OptimizerName) else None
