"""What `engine.split` comes to in a run, and where unequal shares would not give the even split's result."""

from __future__ import annotations

from collections.abc import Iterator

from vitscale.config.batch import Batch
from vitscale.config.knobs import Split
from vitscale.config.study import Study
from vitscale.errors import Infeasible
from vitscale.study.engines import sharding
from vitscale.study.points import Point

_EXACT = ("ddp", "deepspeed", "fsdp")
"""Engines whose weights were held against the even split's, step by step."""
_DRAWN = {
    "mixup": "pairs of images",
    "cutmix": "pairs of images",
    "rand_augment": "operations",
    "drop_path": "the blocks that images skip",
}
"""Key of `[train]` -> what is drawn once per micro-batch or rank."""


def resolve(study: Study, point: Point, batch: Batch, *, alike: bool) -> Study:
    """The study with what its `engine.split` comes to in this run: off where all ranks take the same anyway.

    Args:
        study: what is asked.
        point: the combination.
        batch: the even split.
        alike: whether the devices are of one kind by themselves, as simulated ones are.

    Raises:
        Infeasible: a list that is not one of this run, or a combination in which the result would be another.
    """
    split = study.engine.split
    if split is None:
        return study
    if isinstance(split, tuple) and point.world_size > 1:
        _require_sum(split, point, batch)
    if point.world_size == 1 or (alike and split == "proportional") or _even(split, batch):
        return study.model_copy(update={"engine": study.engine.model_copy(update={"split": None})})
    for rule, way_out in _refusals(study, point):
        raise Infeasible(f"`engine.split = {_shown(study)}`: {rule}", way_out)
    return study


def _even(split: Split, batch: Batch) -> bool:
    return isinstance(split, tuple) and set(split) == {batch.micro_batch}


def _require_sum(split: tuple[int, ...], point: Point, batch: Batch) -> None:
    wanted = batch.micro_batch * point.world_size
    if len(split) != point.world_size:
        raise Infeasible(
            f"`engine.split = {list(split)}` has {len(split)} ranks, and `world_size = {point.world_size}`",
            "one micro-batch for each rank, or engine.split=proportional",
        )
    if sum(split) != wanted:
        raise Infeasible(
            f"`engine.split = {list(split)}` adds up to {sum(split)} images, and a micro-step has "
            f"{batch.micro_batch} x {point.world_size} = {wanted}",
            f"micro-batches that add up to {wanted}",
        )


def _refusals(study: Study, point: Point) -> Iterator[tuple[str, str]]:
    if point.sequence_parallel > 1 or point.tensor_parallel > 1:
        key = "tensor_parallel" if point.tensor_parallel > 1 else "sequence_parallel"
        yield f"with `{key} = {getattr(point, key)}` ranks take the same images", f"{key}=1"
    if point.engine not in _EXACT:
        yield f"`engine = {point.engine}` was not held against the even split", "engine=ddp"
    shards = sharding(point.engine, point.zero_stage, smallest=3)
    if study.engine.split == "proportional" and shards:
        yield f"a rank is timed with whole weights, which `{shards}` shards", "a list by rank, or zero_stage=2"
    for key, drawn in _DRAWN.items():
        value = getattr(study.train, key)
        if study.train.trains and value:
            yield (
                f"`train.{key} = {value:g}` draws {drawn} by micro-batch, and would draw others",
                f"train.{key}=0",
            )


def _shown(study: Study) -> str:
    split = study.engine.split
    return str(list(split)) if isinstance(split, tuple) else str(split)
