"""What `vitscale recommend` starts from: a results folder, whose series are calibrated, or the name of a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitscale.cost import models
from vitscale.cost.models import ViTShape
from vitscale.cost.scaling import Array, Layout
from vitscale.errors import UsageError
from vitscale.predict.candidates import CPU, Candidate, Pool, Way, ways
from vitscale.predict.draws import seed
from vitscale.predict.memory import shape_of
from vitscale.predict.model import Calibration, calibrate, step_draws
from vitscale.predict.priors import find_device
from vitscale.predict.series import Asked, Observation, Series

IMAGES = 1_281_167
"""Training images of ImageNet-1k (cited: Russakovsky et al., IJCV 115, 2015): where nothing else is told."""
GLOBAL_BATCH = 1024
"""Where nothing else is told (cited: DeiT, Touvron et al., ICML 2021)."""


@dataclass(frozen=True)
class Source:
    """The model, what is to be trained, and what was measured of it."""

    shape: ViTShape
    global_batch: int
    images_per_epoch: int
    epochs: float
    optimizer: str
    series: tuple[Series, ...] = ()
    """Measured ones; none where only a model is named."""
    resolved: Mapping[str, Any] = field(default_factory=dict)
    """The study as it was resolved; empty where only a model is named."""
    assumptions: tuple[str, ...] = ()

    def nearest(self, way: Way) -> Series:
        """The measured series that is most like a way: what the way is predicted from."""
        return min(self.series, key=lambda each: _distance(each, way))

    def knobs(self, way: Way) -> Mapping[str, Any]:
        """Of the series that a way is predicted from; none where nothing was measured."""
        return self.nearest(way).knobs if self.series else {}

    @property
    def measured_device(self) -> str | None:
        """Short name of the device that was measured, `cpu`, or None."""
        if not self.series:
            return None
        device = self.series[0].device
        known = find_device(device)
        return known.name if known else CPU if device in (None, CPU) else device

    def own_pool(self, memory_bytes: int | None, price_per_hour: float | None) -> Pool:
        """The devices that were measured, as many as at most."""
        device = self.measured_device
        if device is None:
            raise UsageError("a model alone does not say on what to run it", "--devices h100x8")
        layouts = [at.layout for one in self.series for at in one.observations]
        most = max(at.world_size for at in layouts)
        fullest = max(math.ceil(at.world_size / at.nodes) for at in layouts)
        known = find_device(self.series[0].device)
        if known is None and device != CPU:
            raise UsageError(f"`{device}` is not in the catalog of devices", "--devices with one that is")
        memory_bytes = memory_bytes or (known.memory_bytes if known else None)
        several = any(at.nodes > 1 for at in layouts)
        return Pool(device, most, price_per_hour, memory_bytes, fullest if several else None)

    def ways_on(self, pool: Pool) -> tuple[Way, ...]:
        """Those that were measured; on another device, or with nothing measured, all."""
        if pool.device != self.measured_device:
            return ways(pool)
        return tuple(dict.fromkeys(_way(one) for one in self.series))


def of_model(name: str, given: Mapping[str, float]) -> Source:
    """Specs only.

    Raises:
        UsageError: no timm ViT of that name.
    """
    told = []
    for key, value in (("images", IMAGES), ("epochs", 1), ("global_batch", GLOBAL_BATCH)):
        if key not in given:
            told.append(f"{key} = {value:,}: not told")
    return Source(
        models.shape(name),
        int(given.get("global_batch", GLOBAL_BATCH)),
        int(given.get("images", IMAGES)),
        given.get("epochs", 1.0),
        "adamw",
        assumptions=("nothing was measured: data sheets and priors only", *told, "optimizer: adamw"),
    )


def of_results(folder: Path, given: Mapping[str, float], target_accuracy: float | None) -> Source:
    """The measured series of a results folder, of one model.

    Raises:
        UsageError: no timm ViT, or a target accuracy that no run reached.
        ResultsError: the folder cannot be read.
    """
    from vitscale.analysis.load import load
    from vitscale.predict.read import read

    resolved = load(folder).results.resolved
    series = [one for one in read(folder) if one.measured]
    shape = shape_of(series[0]) if series else None
    if shape is None:
        raise UsageError(f"`{folder}` has no measured run of a timm ViT", "name a model in its place")
    first = series[0]
    same = tuple(one for one in series if (one.model, one.device) == (first.model, first.device))
    told = [] if len(same) == len(series) else [f"{first.model} only: the results have other models or devices too"]
    batches = {round(at.layout.global_batch) for one in same for at in one.observations}
    batch = int(given.get("global_batch", max(batches)))
    if len(batches) > 1 and "global_batch" not in given:
        told.append(f"global_batch = {batch:,}, the largest measured; every candidate has the same")
    train = resolved.get("train") or {}
    epochs = given.get("epochs") or train.get("epochs")
    if target_accuracy is not None:
        epochs = _epochs_to(folder, target_accuracy, batch)
        told.append(f"{epochs:g} epochs to the target accuracy, as measured at a global batch of {batch:,}")
    elif epochs is None:
        told.append("epochs = 1: not told")
    images = given.get("images") or first.images_per_epoch
    if images is None:
        raise UsageError("the results do not say how many images an epoch has", "images=1281167")
    optimizer = (resolved.get("optimizer") or {}).get("name", "adamw")
    return Source(shape, batch, int(images), float(epochs or 1), optimizer, same, resolved, tuple(told))


def _epochs_to(folder: Path, target: float, global_batch: int) -> float:
    from vitscale.analysis.learning import reached
    from vitscale.analysis.load import load

    runs = [run for run in load(folder).runs if run.facts.global_batch == global_batch]
    found = [at.epochs for at in (reached(run, target) for run in runs) if at.epochs is not None]
    if not found:
        raise UsageError(
            f"no run with a global batch of {global_batch:,} reached an accuracy of {target:g} in every launch",
            "train one to it: vitscale run STUDY train.epochs=…, and then recommend from its results",
        )
    return max(found)


def steps_of(source: Source) -> Callable[[Sequence[Candidate]], list[Array]]:
    """The prediction of many candidates' steps: each from the calibration nearest to it, comparable draw by draw."""

    def steps(candidates: Sequence[Candidate]) -> list[Array]:
        fitted: dict[str, Calibration] = {}
        alike: dict[tuple[Pool, Way], list[int]] = {}
        for index, one in enumerate(candidates):
            alike.setdefault((one.pool, one.way), []).append(index)
        found: dict[int, Array] = {}
        for (pool, way), own in alike.items():
            layouts = [candidates[index].layout for index in own]
            if source.series:
                series = source.nearest(way)
                if series.name not in fitted:
                    fitted[series.name] = calibrate(series)
                fit = fitted[series.name]
                asked = _asked(series, pool, way, source.measured_device)
            else:
                fit, asked = calibrate(_specs(source, pool, way), seed=seed(pool.device)), Asked()
            found |= zip(own, step_draws(fit, layouts, asked), strict=True)
        return [found[index] for index in range(len(candidates))]

    return steps


def _specs(source: Source, pool: Pool, way: Way) -> Series:
    per_rank = max(1, 2 ** int(math.log2(max(1, source.global_batch // pool.count))))
    # A full node, which reaches the network by all of its cards.
    layout = Layout(min(pool.per_node, pool.count), 1, min(64, per_rank), 1)
    return Series(
        source.shape.name,
        (Observation(layout, None),),
        protocol="strong",
        model=source.shape.name,
        img_size=source.shape.img_size,
        patch_size=source.shape.patch_size,
        device=pool.device,
        engine=way.engine,
        zero_stage=way.zero_stage,
        precision=way.precision,
        source="specs",
    )


def _way(series: Series) -> Way:
    return Way(series.engine or "ddp", series.zero_stage, series.precision or "fp32")


def _distance(series: Series, way: Way) -> tuple[int, int, int]:
    own = _way(series)
    return (own.precision != way.precision, own.engine != way.engine, own.zero_stage != way.zero_stage)


def _asked(series: Series, pool: Pool, way: Way, measured: str | None) -> Asked:
    own = _way(series)
    return Asked(
        engine=way.engine if (own.engine, own.zero_stage) != (way.engine, way.zero_stage) else None,
        zero_stage=way.zero_stage if own.zero_stage != way.zero_stage else None,
        precision=way.precision if own.precision != way.precision else None,
        device=pool.device if pool.device != measured else None,
    )
