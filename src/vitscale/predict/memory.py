"""Bytes of a rank at an asked layout, by the closed forms of `cost`, for a series that names a timm ViT."""

from __future__ import annotations

from typing import get_args

from vitscale.config.study import OptimizerName
from vitscale.cost import models, recompute, sequence
from vitscale.cost.memory import rank_memory
from vitscale.cost.models import ViTShape
from vitscale.cost.optimizers import moment_elements
from vitscale.cost.scaling import Layout
from vitscale.cost.vit import PRECISION_BYTES, parameter_tensors, parameters
from vitscale.errors import VitscaleError
from vitscale.predict.series import Series


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


def rank_bytes(series: Series, layout: Layout) -> int | None:
    """A lower bound of one rank's memory: no context, communicator or allocator; AdamW's where no optimizer is told.

    None where too little is told.
    """
    if not series.batch_told:
        return None
    shape, precision = shape_of(series), series.precision or "fp32"
    if shape is None or precision not in PRECISION_BYTES or series.engine not in (None, "deepspeed", "ddp", "single"):
        return None
    moments = _moments(shape, series.optimizer)
    if moments is None:
        return None
    form = recompute.activation_bytes if series.knobs.get("activation_checkpointing") else sequence.activation_bytes
    kept = form(shape, max(1, round(layout.micro_batch)), precision, 1)
    found = rank_memory(
        parameter_tensors(shape),
        kept,
        engine=series.engine or "ddp",
        zero_stage=series.zero_stage,
        precision=precision,
        data_parallel=layout.world_size,
        moments=moments,
        device="cpu" if series.device == "cpu" else "cuda",
    )
    return found.total_bytes


def _moments(shape: ViTShape, optimizer: str | None) -> int | None:
    """Elements that an optimizer keeps; None where a source names one whose state is not known."""
    name = {None: "adamw", "adam": "adamw"}.get(optimizer and optimizer.lower(), (optimizer or "").lower())
    return moment_elements(shape, name) if name in get_args(OptimizerName) else None
