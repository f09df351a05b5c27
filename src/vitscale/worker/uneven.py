"""Micro-batches of unlike size: what each rank takes, chosen once for a run, and the weight of its loss.

A `proportional` split is timed by the run's first launch: forward and backward of the run's model, without
communication, all ranks at once since ranks of one host share it. Times are not in proportion to images (a pass has
costs of its own), so what follows from the rates is timed too, and of all that were timed the one with the fastest
slowest rank is taken. A rank whose memory holds less than its share takes it in more micro-steps than the others, where
gradients are reduced after the last one only; elsewhere it gets what it holds, and the others the rest. The split lies
in `runs/<run_id>/split.json`, where further launches find it: they are replications, and refused where a rank is on
another kind of device.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitscale.config import offload
from vitscale.config.knobs import EngineSection
from vitscale.config.runspec import RunSpec
from vitscale.cost.mixed import Shares, alike, in_parts, proportional, weight, within
from vitscale.cost.run import most_images
from vitscale.errors import MemoryExceeded, ResultsError
from vitscale.records.round import Entry
from vitscale.records.schema import Split
from vitscale.records.writer import write_json
from vitscale.worker import devices, engines, inject, knobs, optimizers
from vitscale.worker.distributed import Ranks, barrier, gathered

ROUNDS, MICRO_STEPS = 3, 3
"""Splits that are timed at most; micro-steps of each, after one that is not counted."""

STEPS = ROUNDS * (MICRO_STEPS + 1)

FILE = "split.json"

Build = Callable[[RunSpec, torch.device], nn.Module]


def split_of(
    spec: RunSpec, entry: Entry, ranks: Ranks, sharing: int, build: Build, beat: Callable[[int], None]
) -> Split | None:
    """The micro-batches of a run, None where all are equal. All ranks at once.

    Args:
        spec: the run.
        entry: one of its launches.
        ranks: all of them take part.
        sharing: ranks that share the memory of one machine.
        build: makes the run's model.
        beat: is told the number of micro-steps taken.

    Raises:
        ResultsError: the split that the run has was chosen on other devices, or cannot be read.
        MemoryExceeded: the ranks' memory holds fewer images than a micro-step has.
    """
    asked = spec.knobs.split if spec.knobs else None
    if asked != "proportional":
        return Split(micro_batches=spec.micro_batches) if asked else None
    path = Path(entry.folder).parent / FILE
    kept = _kept(path, spec) if ranks.rank == 0 else None
    own = {"device": devices.timed_as(ranks.device), "kept": None if kept is None else kept.model_dump(mode="json")}
    told = gathered(own, ranks)
    names = tuple(str(one["device"]) for one in told)
    if told[0]["kept"]:
        found = Split.model_validate_json(json.dumps(told[0]["kept"]))
        _require_devices(path, found, names)
        return found
    chosen = _timed(spec, entry, ranks, sharing, build, beat).model_copy(update={"devices": names})
    if ranks.rank == 0:
        write_json(path, chosen.model_dump(mode="json"))
    return chosen


def dealt(spec: RunSpec, split: Split | None, rank: int) -> RunSpec:
    """The run as a rank has it: its own micro-batch and micro-steps, and everybody's images by rank.

    Its identity is another one's.
    """
    if split is None:
        return spec
    assert spec.knobs is not None
    knobs = spec.knobs.model_copy(update={"split": split.micro_batches})
    accum = spec.grad_accum * (split.micro_steps[rank] if split.micro_steps else 1)
    return spec.model_copy(update={"knobs": knobs, "micro_batch": split.at_once[rank], "grad_accum": accum})


def weighted(engine: engines.Engine, split: Split | None, rank: int) -> engines.Engine:
    """The engine, which averages over ranks, made to average over images."""
    if split is None:
        return engine
    wrapped: Any = _Weighted(engine, weight(split.micro_batches, rank))
    averaging: engines.Engine = wrapped
    return averaging


class _Weighted:
    """An engine whose gradients are those of the rank's mean loss times its share of the images."""

    def __init__(self, engine: engines.Engine, factor: float) -> None:
        self._engine, self._factor = engine, factor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def __call__(self, images: Tensor) -> Tensor:
        return self._engine(images)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """The engine's, of the weighted loss."""
        self._engine.backward(loss * self._factor, last=last)


def _kept(path: Path, spec: RunSpec) -> Split | None:
    try:
        kept = Split.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ResultsError(f"cannot read `{path}`: {error}", "remove it: the next launch chooses again") from None
    counted = {len(kept.micro_batches), len(kept.micro_steps or kept.micro_batches)}
    if counted != {spec.data_parallel} or sum(kept.micro_batches) != sum(spec.micro_batches):
        raise ResultsError(f"`{path}` is of another run", "remove it: the next launch chooses again")
    return kept


def _require_devices(path: Path, kept: Split, names: tuple[str, ...]) -> None:
    """Another split would be no replication, and this one is for other devices: on all ranks alike, so none waits."""
    for rank, (then, now) in enumerate(zip(kept.devices or names, names, strict=True)):
        if then != now:
            raise ResultsError(
                f"`{path}` was chosen with rank {rank} on `{then}`, which is on `{now}` now",
                "ask for the devices of the first launch (launch.constraint, launch.hostfile), or give another `--out`",
            )


def _timed(spec: RunSpec, entry: Entry, ranks: Ranks, sharing: int, build: Build, beat: Callable[[int], None]) -> Split:
    """Time splits on the run's model, and choose."""
    most, refused = _room(spec, ranks, sharing), one_count(spec)
    alone = spec.model_copy(update={"engine": "single", "grad_accum": 1})
    turned = (spec.knobs or EngineSection()).model_copy(update={"compile": None})  # each size would be compiled anew
    model = build(spec, ranks.device)
    knobs.apply(turned, model)
    engine = engines.build(alone, model, optimizers.build(model, spec.optimizer, ranks.device))
    slowed, _ = inject.slowed(engine, None, inject.delays(entry.run_id, ranks.rank, os.environ))  # type: ignore[arg-type]

    def seconds(shares: Shares, number: int) -> list[float]:
        with knobs.attention(turned):
            own_s = _pass_s(slowed, spec, shares.images[ranks.rank], shares.parts[ranks.rank], ranks)
        beat(number * (MICRO_STEPS + 1))
        return [float(one["s"]) for one in gathered({"s": own_s}, ranks)]

    chosen = search(spec.micro_batches, most, seconds, parts=refused is None)
    engine.close()
    del model
    devices.return_memory(ranks.device)
    return chosen.model_copy(update={"full_reason": refused if chosen.full else None})


def one_count(spec: RunSpec) -> str | None:
    """Why all ranks of a run have to take as many micro-steps, so that they meet in the same collectives; else None."""
    knobs = spec.knobs or EngineSection()
    if spec.engine == "fsdp" or (spec.zero_stage or 0) >= 2:
        shards = "FSDP" if spec.zero_stage is None else f"ZeRO stage {spec.zero_stage}"
        return f"{shards} reduces gradients in every micro-step"
    if offload.asked(spec.deepspeed).optimizer:
        return "with an offloaded optimizer it was not held against the even split"
    for knob in ("static_graph", "compile_mode"):
        if getattr(knobs, knob):
            return f"`engine.{knob}` has one micro-step"
    return None


def search(
    even: tuple[int, ...],
    most: Sequence[int],
    seconds: Callable[[Shares, int], list[float]],
    *,
    parts: bool = False,
) -> Split:
    """The fastest of the splits that are timed: the even one, then each in proportion to the rates of the one before.

    Args:
        even: images of each rank where all take the same.
        most: images that each rank's memory holds at once, all images of a micro-step together.
        seconds: times a split, the first one being number 1; seconds of each rank.
        parts: whether a rank may take its images in several micro-steps; else it takes what it holds at once.
    """
    images, once = sum(even), (1,) * len(even)

    def deal(rates: Sequence[float]) -> Shares:
        return in_parts(images, rates, most) if parts else Shares(within(images, rates, most), once)

    first = shares = deal([1.0] * len(even))
    seen: dict[Shares, list[float]] = {}
    for number in range(ROUNDS):
        seen[shares] = seconds(shares, number + 1)
        shares = deal(alike(_rates(shares, seen[shares])))
        if shares in seen:
            break
    best = min(seen, key=lambda one: max(seen[one]))
    if first.images == even and len(set(alike(seen[first]))) == 1:
        best = first  # ranks that cannot be told apart take the same
    rates = _rates(best, seen[best])
    asked = proportional(images, alike(rates))
    full = [rank for rank, own in enumerate(best.images) if own == most[rank] < asked[rank]]
    return Split(
        micro_batches=best.images,
        images_per_s=tuple(rates),
        micro_steps=None if best.parts == once else best.parts,
        full=tuple(full) or None,
    )


def _rates(shares: Shares, times_s: Sequence[float]) -> list[float]:
    return [own / time_s for own, time_s in zip(shares.images, times_s, strict=True)]


def _room(spec: RunSpec, ranks: Ranks, sharing: int) -> list[int]:
    """Images of a micro-step that each rank's memory holds, by the plan's estimate. All ranks at once.

    Raises:
        MemoryExceeded: fewer than there are; on all ranks alike.
    """
    images = sum(spec.micro_batches)
    own = most_images(spec, devices.memory_bytes(ranks.device, sharing), images)
    most = [int(one["most"]) for one in gathered({"most": own}, ranks)]
    require_room(images, most)
    return most


def require_room(images: int, most: Sequence[int]) -> None:
    """See that ranks hold the images of a micro-step, at least one each.

    Raises:
        MemoryExceeded: they do not.
    """
    each = sum(most) // len(most)
    if min(most) == 0:
        ranks = ", ".join(str(rank) for rank, own in enumerate(most) if own == 0)
        raise MemoryExceeded(f"no image fits in the memory of rank {ranks}", "a smaller model, or leave its device out")
    if sum(most) < images:
        held = ", ".join(map(str, most[:8])) + (", …" if len(most) > 8 else "")
        told = f"a micro-step has {images} images, and the memory of the ranks holds {sum(most)} ({held})"
        raise MemoryExceeded(f"{told}: micro_batch={each} with a larger grad_accum fits", f"micro_batch={each}")


def _pass_s(engine: engines.Engine, spec: RunSpec, images: int, parts: int, ranks: Ranks) -> float:
    """Median time of forward and backward of so many images, in parts one after another, of random pixels.

    Gradients are thrown away.
    """
    size, at_once = spec.model.img_size, images // parts
    pixels = torch.randn(at_once, 3, size, size, device=ranks.device).to(engine.dtype)
    labels = torch.zeros(at_once, dtype=torch.long, device=ranks.device)
    times_s = []
    for _ in range(MICRO_STEPS + 1):
        barrier()
        began = time.perf_counter()
        for _ in range(parts):
            engine.backward(functional.cross_entropy(engine(pixels).float(), labels), last=False)
        if ranks.device.type == "cuda":
            torch.cuda.synchronize()
        times_s.append(time.perf_counter() - began)
    return statistics.median(times_s[1:])
