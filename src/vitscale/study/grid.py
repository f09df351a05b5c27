"""From a study to its runs: each combination of what varies is either a RunSpec or skipped with its rule."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from vitscale.config.batch import Batch, data_parallel, solve
from vitscale.config.labels import axes, labels
from vitscale.config.runspec import DataSpec, MeasureSpec, ModelSpec, RunSpec
from vitscale.config.study import DataSection, ModelSection, OptimizerSection, Study
from vitscale.config.training import Recipe, scaled_lr
from vitscale.cost import calibrated, models
from vitscale.data.catalog import DatasetFacts
from vitscale.errors import Infeasible, UsageError
from vitscale.hardware import catalog
from vitscale.hardware.topology import Topology, cpu_shares, oversubscribed
from vitscale.records.writer import file_digest
from vitscale.study import fast, split
from vitscale.study.backends import resolve
from vitscale.study.engines import (
    own_keys,
    require_installed,
    require_optimizer,
    require_possible,
    require_shares,
    require_whole_weights,
)
from vitscale.study.knobs import require_allocator, require_compiler, require_knobs, require_own_reduction
from vitscale.study.offload import require_offload
from vitscale.study.points import Point, label, points, variants
from vitscale.study.where import Where

DEFAULT_SECONDS = 10.0
_NOT_MIRRORED = ("digits", "synthetic")


class Images(NamedTuple):
    """A data set as the grid sees it."""

    facts: DatasetFacts
    fingerprint: str


class Skipped(NamedTuple):
    """A combination that cannot exist."""

    label: str
    why: str
    hint: str | None
    world_size: int

    @property
    def reason(self) -> str:
        """Why, and the way out."""
        return f"{self.why} ({self.hint})" if self.hint else self.why


@dataclass(frozen=True)
class Grid:
    """The runs of a study in order, what was skipped, and what a reader should know."""

    runs: tuple[RunSpec, ...]
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]

    def labels(self) -> dict[str, str]:
        """run_id -> short label from what differs between the runs, as the report has it."""
        specs = {run.run_id: run for run in self.runs}
        series = {run.run_id: run.series for run in self.runs}
        made = labels(specs, series, axes(specs))
        return {run_id: made[run_id] for run_id in specs}


def build(study: Study, where: Where, images_of: Callable[[DataSection], Images]) -> Grid:
    """Resolve every combination.

    Args:
        study: what is asked.
        where: the machine, or the device that is simulated.
        images_of: facts and fingerprint of a data set.

    Raises:
        UsageError: a value that can never be valid, or a world size of which no run is left.
        SetupError: CUDA is asked for and there is none.
    """
    baseline = study.measure.baseline
    if baseline is not None and baseline not in study.axes.world_size:
        sizes = ", ".join(map(str, study.axes.world_size))
        raise UsageError(f"`measure.baseline = {baseline}` is not one of the world sizes {sizes}", "name one of them")
    runs: dict[str, RunSpec] = {}
    skipped: dict[tuple[str, str], Skipped] = {}
    notes = dict.fromkeys(_notes(study, where))
    for variant, varied in variants(study):
        images = images_of(variant.data)
        for open_point in points(variant, where.device):
            taken, point, chosen = fast.choose(study, variant, open_point, where)
            notes |= dict.fromkeys(chosen)
            try:
                run = _resolve(taken, point, where, images)
            except Infeasible as error:
                words = label(study, point, varied)
                skipped.setdefault((words, error.message), Skipped(words, error.message, error.hint, point.world_size))
            else:
                runs.setdefault(run.run_id, run)
    for world_size in study.axes.world_size:
        if not any(run.world_size == world_size for run in runs.values()):
            first = next(skip for skip in skipped.values() if skip.world_size == world_size)
            raise UsageError(f"no run of `world_size = {world_size}` is possible: {first.why}", first.hint)
    _require_lr_policy(study, tuple(runs.values()))
    return Grid(tuple(runs.values()), tuple(skipped.values()), tuple(notes))


def _resolve(study: Study, point: Point, where: Where, images: Images) -> RunSpec:
    world_size, machine = point.world_size, where.machine
    topology = where.topology(world_size, point.nodes, point.ranks_per_node)
    if point.device == "cpu" and point.precision == "fp16":
        raise Infeasible("`precision = fp16` needs CUDA: CPUs train in fp32 or bf16", "precision=bf16")
    require_possible(point.engine, point.precision, world_size, point.tensor_parallel)
    require_offload(study.deepspeed, point, here=where.simulated is None)
    require_optimizer(point.engine, point.zero_stage, study.optimizer.name)
    if where.simulated is None:
        _require_here(study, point, where, topology)
    groups = data_parallel(world_size, point.sequence_parallel, point.tensor_parallel)
    batch = _batch(study, point, groups)
    study = split.resolve(study, point, batch, alike=where.simulated is not None)
    require_knobs(study.engine, point, study.optimizer.name, batch.grad_accum)
    require_own_reduction(study.engine, point, study.deepspeed)
    taken, per_device = _taken(study, point, images.facts)
    if batch.global_batch > taken:
        raise Infeasible(f"`global_batch` {batch.global_batch:,} is more than the {taken:,} training images")
    model = model_spec(study.model, images.facts.classes)
    require_shares(models.shape(model.name, **model.sizes), point.tensor_parallel)
    threads = _threads(study, where) if point.device == "cpu" and where.simulated is None else None
    measure = study.measure
    seconds = measure.seconds if measure.steps or measure.seconds else DEFAULT_SECONDS
    measured = {name: getattr(measure, name) for name in MeasureSpec.model_fields}
    return RunSpec(
        protocol=point.protocol,
        model=model,
        data=DataSpec(
            name=study.data.name,
            fingerprint=images.fingerprint,
            images=taken,
            images_per_device=per_device,
            flip=study.data.name not in _NOT_MIRRORED if study.data.flip is None else study.data.flip,
        ),
        world_size=world_size,
        nodes=topology.nodes,
        ranks_per_node=topology.ranks_per_node,
        data_parallel=groups,
        sequence_parallel=point.sequence_parallel if point.sequence_parallel > 1 else None,
        tensor_parallel=point.tensor_parallel if point.tensor_parallel > 1 else None,
        engine=point.engine,
        precision=point.precision,
        device=point.device,
        backend=resolve(point.backend, point.device, here=where.simulated is None),
        **batch._asdict(),
        optimizer=_scaled(study.optimizer, batch.global_batch),
        train=_recipe(study, point),
        init=_init_digest(study.train.init),
        **own_keys(study, point.engine, point.zero_stage, point.device),
        measure=MeasureSpec(**{**measured, "seconds": seconds, "profile": measure.profile or None}),
        threads_per_rank=threads,
        oversubscribed=threads is not None and oversubscribed(where.sharing(topology), threads, machine.cores),
        link=study.launch.link if where.lab else None,
        simulated_device=where.simulated,
        calibration=_calibration_digest(study.hardware.calibration) if where.simulated else None,
    )


def _require_here(study: Study, point: Point, where: Where, topology: Topology) -> None:
    require_installed(point.engine)
    require_compiler(study.engine)
    require_allocator(study.engine, point, where)
    gpus = len(where.machine.gpus)
    if point.device == "cuda" and where.sharing(topology) > gpus:
        there = "is 1 GPU" if gpus == 1 else f"are {gpus} GPUs"
        raise Infeasible(f"`world_size = {point.world_size}`, but there {there}", "one rank per GPU")


def _batch(study: Study, point: Point, groups: int) -> Batch:
    """The batch identity's factors for so many ranks that each have images of their own."""
    shared = point.world_size // groups
    sizes = [size // shared for size in study.axes.world_size if size % shared == 0]
    return solve(point.protocol, point.given, groups, sizes)


def _threads(study: Study, where: Where) -> int:
    """Threads of a rank, at every world size what the largest leaves to each."""
    axes = study.axes
    most = where.most_sharing(max(axes.world_size), axes.nodes or (None,), axes.ranks_per_node or (None,))
    return cpu_shares(most, where.machine.cores)


def _scaled(optimizer: OptimizerSection, global_batch: int) -> OptimizerSection:
    own = (optimizer.lr_of or {}).get(optimizer.name, optimizer.lr)
    lr = scaled_lr(own, optimizer.lr_policy, optimizer.lr_base_batch, global_batch)
    return optimizer.model_copy(update={"lr": lr, "lr_of": None})


def _recipe(study: Study, point: Point) -> Recipe | None:
    """What is learnt, or None where the run only measures.

    Raises:
        Infeasible: the recipe needs what the engine does not give.
    """
    if not study.train.trains:
        return None
    require_whole_weights(point.engine, point.zero_stage, point.tensor_parallel, study.train.ema)
    return Recipe(**{name: getattr(study.train, name) for name in Recipe.model_fields})


@cache
def _calibration_digest(path: str | None) -> str | None:
    """sha256 of the calibration, which is read once before: what is none is refused."""
    if path is None:
        return None
    calibrated.read_calibration(Path(path).expanduser())
    return file_digest(calibrated.file_of(Path(path).expanduser()))


@cache
def _init_digest(path: str | None) -> str | None:
    """sha256 of the file the weights start from."""
    if path is None:
        return None
    file = Path(path).expanduser()
    if not file.is_file():
        raise UsageError(f"`train.init` = `{path}` is not a file", "a safetensors file or a timm checkpoint")
    return file_digest(file)


def _require_lr_policy(study: Study, runs: Sequence[RunSpec]) -> None:
    """Refuse to leave open what becomes of the learning rate where the global batch varies."""
    batches = sorted({run.global_batch for run in runs if run.train is not None})
    if len(batches) > 1 and study.optimizer.lr_policy is None:
        raise UsageError(
            f"runs train with global batches {', '.join(map(str, batches))}, and `optimizer.lr_policy` is not given",
            f"optimizer.lr_policy=linear optimizer.lr_base_batch={batches[0]}, or optimizer.lr_policy=none",
        )


def _taken(study: Study, point: Point, facts: DatasetFacts) -> tuple[int, int | None]:
    """Training images of a run: in all, and per device where the protocol is `weak`."""
    if point.protocol != "weak":
        images = study.data.images or facts.train_images
        if images > facts.train_images:
            raise UsageError(
                f"`data.images` = {images:,}, but `{facts.name}` has {facts.train_images:,} training images"
            )
        return images, None
    share = facts.train_images // max(study.axes.world_size)
    per_device = study.data.images_per_device or share
    images = per_device * point.world_size
    if images > facts.train_images or not images:
        raise Infeasible(
            f"`images_per_device` {per_device:,} x {point.world_size} ranks is more than the {facts.train_images:,} "
            f"training images of `{facts.name}`",
            f"images_per_device={share} fits every world size" if share else None,
        )
    return images, per_device


def model_spec(section: ModelSection, classes: int) -> ModelSpec:
    """The model with every value resolved.

    Raises:
        UsageError: not a timm ViT, or an image that patches do not tile.
    """
    names = models.names()
    if section.name not in names:
        near = difflib.get_close_matches(section.name, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(f'`{name}`' for name in near)}?" if near else "`timm.list_models('vit_*')`"
        raise UsageError(f"no timm Vision Transformer is called `{section.name}`", hint)
    own = {"depth": section.depth, "embed_dim": section.embed_dim, "num_heads": section.num_heads}
    shape = models.shape(section.name, section.img_size, section.patch_size, classes, **own)
    sizes = {"img_size": shape.img_size, "patch_size": shape.patch_size}
    return ModelSpec(name=section.name, num_classes=classes, **sizes, **own)


def _notes(study: Study, where: Where) -> Iterator[str]:
    asked = study.axes
    if where.simulated is not None:
        told = "" if where.simulated == catalog.CPU else " of the catalog"
        yield f"for {catalog.title(where.simulated)}{told}, not for this machine"
    if "auto" in asked.device and where.simulated is None:
        reason = "" if where.machine.gpus else f" ({where.machine.gpus_reason})"
        yield f"device = auto: {where.device('auto')}{reason}"
    if study.protocol == ("strong",) and asked.micro_batch and asked.grad_accum:
        yield "strong reads grad_accum and solves micro_batch; micro_batch is not read"
