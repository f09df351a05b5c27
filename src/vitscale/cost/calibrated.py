"""`calibration.json`: fitted parameters as data. `predict` writes it, `simulate` reads it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vitscale.config import offload
from vitscale.config.runspec import RunSpec
from vitscale.cost import models
from vitscale.cost.input import Input, Reading
from vitscale.cost.memory import zero_keys
from vitscale.cost.models import ViTShape
from vitscale.cost.scaling import MECHANISMS, Layout, Mechanisms, parts, schedule
from vitscale.cost.step import StepEstimate
from vitscale.errors import ResultsError, UsageError, VitscaleError
from vitscale.hardware import catalog

NAME = "calibration.json"

CHECKED_TIMES = 64
"""Times the largest shown world size, up to which the package's published tables check predictions."""

_FAR_TIMES = 16
OF_ZERO = ("overlap_comm", "reduce_bucket_size", "stage3_param_persistence_threshold")
"""Keys of DeepSpeed's `zero_optimization` that change a step or its memory."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class FittedParameter(_Frozen):
    """One parameter: a median with its 95 % interval."""

    median: float
    low95: float
    high95: float


class FittedSeries(_Frozen):
    """One series. Mechanisms are ratios to the reference micro-step, as `cost.scaling` derives them."""

    device: str | None
    model: str | None
    sizes: dict[str, int] = {}
    """Sizes of the model that are told beside its name; the others are the model's own."""
    optimizer: str | None = None
    """Null: not told, taken for any."""
    knobs: dict[str, Any] = {}
    """Of the study's `[engine]` those that are on, and what else `knobs_of` names."""
    protocol: str | None
    engine: str | None
    zero_stage: int | None
    precision: str | None
    reference_micro_batch: float = Field(gt=0)
    """Images of the reference micro-step."""
    micro_step_s: FittedParameter
    """Forward and backward of the reference micro-step, seconds."""
    parameters: dict[str, FittedParameter]
    """`fixed_share`, `update`, `intra_node`, `inter_node`, `hop`, `contention`, `exposed_floor`, `jitter` (see
    `cost.scaling.Mechanisms`), and `noise` and `drift`: launch-to-launch noise, and what the mechanisms miss per root
    of a doubling of the world size, both as standard deviations of the logarithm of the step."""
    measured: tuple[tuple[int, int, float, int, float | None], ...]
    """Of each run: world size, nodes, micro-batch, accumulation, step in seconds (null: not measured)."""
    readings: tuple[Reading, ...] = ()
    """What runs took for their images, where that is no small part: ranks on a node, and seconds of a rank for each of
    its images. Mechanisms are of the steps without that."""
    effective_draws: float
    """Draws of the fit that carried weight."""
    assumptions: tuple[str, ...]


class CalibrationFile(_Frozen):
    """The file."""

    schema_version: Literal[1] = 1
    series: dict[str, FittedSeries]


def file_of(path: Path) -> Path:
    """The file itself, or that of a results folder."""
    return path / NAME if path.is_dir() else path


def knobs_of(spec: RunSpec) -> dict[str, Any]:
    """Knobs of a run that are on, but `fast`, which is what it chose, and what else makes its step another one.

    Those are ranks that share images, where parts of its state are kept, buckets, and weights that stay gathered.
    """
    on = {} if spec.knobs is None else spec.knobs.model_dump(mode="json", exclude_none=True, exclude={"fast"})
    shared = {"sequence_parallel": spec.sequence_parallel, "tensor_parallel": spec.tensor_parallel}
    on |= {name: ranks for name, ranks in shared.items() if ranks is not None}
    zero = zero_keys(spec.deepspeed)
    on |= {name: zero[name] for name in OF_ZERO if name in zero}
    if spec.fsdp is not None and not spec.fsdp.reshard_after_forward:
        on["reshard_after_forward"] = False
    away = offload.asked(spec.deepspeed)
    return on | ({"offload": list(away)} if any(away) else {})


def device_of(file: CalibrationFile) -> str:
    """The device that a calibration is of, by its short name in the catalog, or `cpu`.

    Raises:
        UsageError: it is of several or of none, or of one that the catalog does not have.
    """
    there = sorted({_catalog_name(one.device) for one in file.series.values() if one.device is not None})
    if len(there) != 1:
        told = f"of {', '.join(there)}" if there else "of no device that its source names"
        raise UsageError(f"the calibration is {told}: which is to be simulated is not told", "name it: hardware.name=…")
    (name,) = there
    if name != catalog.CPU and name not in catalog.names():
        raise UsageError(
            f"the calibration is of `{name}`, which the catalog does not have: its memory and nodes are not known",
            "`vitscale predict RESULTS --world-size N` needs no catalog",
        )
    return name


def fullest_node(file: CalibrationFile, device: str) -> int | None:
    """The most ranks on a node that were measured of a device; None where none were."""
    series = [one for one in file.series.values() if one.device is not None and _catalog_name(one.device) == device]
    return max((math.ceil(size / nodes) for one in series for size, nodes, *_ in one.measured), default=None)


def fitted_for(file: CalibrationFile, spec: RunSpec) -> FittedSeries:
    """The series of a run's model with its sizes, optimizer, knobs, engine, stage, precision and device.

    Of several, one of the run's protocol, and of those the one with the nearest reference micro-batch.

    Raises:
        UsageError: there is none; the hint names those that are there.
    """
    asked = _asked(spec)
    there = {name: _key(one, asked) for name, one in file.series.items()}
    same = [one for name, one in file.series.items() if there[name] == asked]
    if not same:
        words = "; ".join(dict.fromkeys(map(_words, there.values())))
        raise UsageError(f"the calibration has no series of {_words(asked)}", f"it has {words}")
    return min(same, key=lambda one: (one.protocol != spec.protocol, _times_apart(one, spec)))


def _times_apart(one: FittedSeries, spec: RunSpec) -> float:
    return abs(math.log(one.reference_micro_batch / _layout(spec).micro_batch))


_Key = dict[str, Any]


def _asked(spec: RunSpec) -> _Key:
    sizes = {name: size for name, size in spec.model.sizes.items() if name != "num_classes"}
    return {
        "model": _shape_of(spec.model.name, sizes),
        "engine": spec.engine,
        "stage": spec.zero_stage,
        "precision": spec.precision,
        "device": spec.simulated_device,
        "optimizer": spec.optimizer.name,
        "knobs": knobs_of(spec),
    }


def _key(one: FittedSeries, asked: _Key) -> _Key:
    return {
        "model": _shape_of(one.model, one.sizes),
        "engine": one.engine,
        "stage": one.zero_stage,
        "precision": one.precision,
        "device": None if one.device is None else _catalog_name(one.device),
        "optimizer": (one.optimizer or asked["optimizer"]).lower(),
        "knobs": one.knobs,
    }


def _shape_of(name: str | None, sizes: Mapping[str, int]) -> ViTShape | str | None:
    """The model as its cost goes; a name that is no timm ViT stays one."""
    try:
        return name and models.shape(name, **sizes)
    except VitscaleError:
        return name


def _words(key: _Key) -> str:
    model = key["model"]
    if isinstance(model, ViTShape):
        model = f"{model.name} ({model.img_size} by {model.patch_size}, {model.depth} x {model.width})"
    told = [model, key["engine"], f"stage {key['stage']}", key["precision"], key["optimizer"], key["device"]]
    return ", ".join(map(str, told + [f"{knob}={value}" for knob, value in key["knobs"].items()]))


def _catalog_name(device: str) -> str:
    known = catalog.match(device)
    return known.name if known else device.lower()


def _layout(spec: RunSpec) -> Layout:
    """With the images of one rank, of those that ranks share its part: so it was fitted."""
    own = spec.global_batch / spec.world_size / spec.grad_accum
    return Layout(spec.world_size, spec.nodes, own, spec.grad_accum)


def fitted_step(one: FittedSeries, spec: RunSpec) -> StepEstimate:
    """The step of the slowest rank by the medians of the fitted mechanisms."""
    names = {name: np.array([one.parameters[name].median]) for name in MECHANISMS}
    layout = _layout(spec)
    plan = schedule(spec.engine, spec.zero_stage, knobs_of(spec), on_cpu=spec.device == "cpu")
    found = parts(Mechanisms(**names), layout, one.reference_micro_batch, plan)
    images = Input(one.readings)
    step_s = float(images.total_s(one.micro_step_s.median * found.step, layout, np.zeros(1))[0])
    seconds = {
        name: one.micro_step_s.median * float(getattr(found, name)[0])
        for name in ("compute", "update", "exposed", "wait", "step")
    }
    return StepEstimate(
        compute_s=seconds["compute"],
        data_s=step_s - seconds["step"],
        optimizer_s=seconds["update"],
        communication_s=None,
        exposed_comm_s=seconds["exposed"],
        wait_s=seconds["wait"],
        step_s=step_s,
        images_per_s=spec.global_batch / step_s,
        assumptions=(
            "fitted: medians of the calibration, stragglers and shared links in them",
            *one.assumptions,
            *images.assumptions(layout),
            *beyond([(run[0], run[1]) for run in one.measured if run[4] is not None], spec.world_size, spec.nodes),
        ),
    )


def beyond(measured: Sequence[tuple[int, int]], world_size: int, nodes: int) -> tuple[str, ...]:
    """How far a layout is from those that were measured, `(world_size, nodes)` each, in words."""
    if not measured:
        return ()
    told = []
    largest, smallest = (end(size for size, _ in measured) for end in (max, min))
    if world_size > _FAR_TIMES * largest:
        told.append(
            f"{world_size / largest:,.0f} times the largest measured world size: published tables check errors up to "
            f"{CHECKED_TIMES} times"
        )
    if world_size < smallest:
        told.append(f"below the smallest measured world size, {smallest}")
    if nodes > 1 and all(count == 1 for _, count in measured):
        told.append("no run across nodes was measured: the network is a prior's")
    return tuple(told)


def read_calibration(path: Path) -> CalibrationFile:
    """Read the file, or that of a results folder.

    Raises:
        ResultsError: it is not there, or is no calibration.
    """
    file = file_of(path)
    try:
        return CalibrationFile.model_validate_json(file.read_bytes())
    except OSError as error:
        raise ResultsError(f"cannot read `{file}`: {error.strerror}", "`vitscale predict RESULTS` writes it") from None
    except ValidationError as error:
        problem = f"`{file}` is no calibration: {error.errors()[0]['msg']}"
        raise ResultsError(problem, "`vitscale predict RESULTS` writes it anew") from None
