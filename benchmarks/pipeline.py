"""Images per second of the uint8 pipeline against the usual one, image by image through PIL and torchvision.

Both take the same images in the same order from the same arrays, in batches of 64, up to what the model takes:
float32 [64, 3, 224, 224] in -1 … 1. Both run in one process on one core with one thread, in turns.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.figure import ROOT, Figure, run, within
from vitscale import units
from vitscale.config.runspec import DataSpec, MeasureSpec, ModelSpec, RunSpec
from vitscale.config.study import OptimizerSection
from vitscale.statistics import interval

TARGET_RATIO = 3.0
BATCH, IMG_SIZE, POOL = 64, 224, 2048
SIDES = (32, 64)
COMMAND = "python -m benchmarks pipeline"


def measure(short: bool) -> list[Figure]:
    """One fresh process per image size."""
    turns, batches = (4, 1) if short else (20, 4)
    figures = []
    for side in SIDES:
        with tempfile.TemporaryDirectory() as name:
            words = [str(number) for number in (side, turns, batches)]
            environ = ["env", f"PYTHONPATH={ROOT}"]
            done = run([*environ, sys.executable, "-m", "benchmarks.pipeline", *words], Path(name))
        figures.append(_figure(side, batches * BATCH, json.loads(done.stdout)))
    return figures


def _figure(side: int, images: int, seen: dict[str, list[float]]) -> Figure:
    ratio = interval([usual / ours for usual, ours in zip(seen["usual_s"], seen["ours_s"], strict=True)])
    ours, usual = (interval([images / wall_s for wall_s in seen[name]]) for name in ("ours_s", "usual_s"))
    rates = [
        f"{units.number(one.median)} images/s ({within(one, units.number, len(seen['ours_s']))})"
        for one in (ours, usual)
    ]
    return Figure(
        f"uint8 pipeline over PIL, {side} px to {IMG_SIZE} px, one core",
        f"{ratio.median:.2f} x",
        within(ratio, "{:.2f}".format, len(seen["ours_s"])),
        f">= {TARGET_RATIO:g} x",
        ratio.median >= TARGET_RATIO,
        COMMAND,
        f"{rates[0]} against {rates[1]}; the ratio is the median over pairs of turns",
    )


def _on_one_core(side: int, turns: int, batches: int) -> dict[str, list[float]]:
    """Wall times of `batches` batches, for both, in turns; the first turn of each is not kept."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import torch

    from vitscale.worker.devices import keep_freed_memory

    torch.set_num_threads(1)
    keep_freed_memory()  # as in every rank; it serves both sides here
    ours, usual = _both(side)
    difference = (ours() - usual()).abs()
    # PIL rounds to whole grey levels, torch does not: half of 1/255 of the range 2, and the weights' own rounding.
    assert float(difference.max()) < 3 * 2 / 255, f"the two do not make the same images: {float(difference.max())}"
    seen: dict[str, list[float]] = {"ours_s": [], "usual_s": []}
    for turn in range(turns + 1):
        sides = (("ours_s", ours), ("usual_s", usual))
        for name, make in sides if turn % 2 else sides[::-1]:
            began = time.perf_counter()
            for _ in range(batches):
                make()
            if turn:
                seen[name].append(time.perf_counter() - began)
    return seen


def _both(side: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """What makes the next batch, our way and the usual way."""
    import numpy as np
    import torch
    from PIL import Image
    from torchvision import transforms

    from vitscale.data.catalog import DatasetFacts
    from vitscale.data.order import GlobalOrder
    from vitscale.data.reader import Split
    from vitscale.worker.pipeline import OnDemand, Prepared, plan

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (POOL, side, side, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, POOL)
    split = Split(DatasetFacts("cifar10", 10, POOL, 0, side, side, 3, "random"), POOL, pixels, labels)
    prepared = Prepared(OnDemand(plan(_spec(), split, 0), torch.device("cpu")), IMG_SIZE, torch.float32)
    steps = itertools.count()
    shuffled = GlobalOrder(POOL, BATCH, 0)
    transform = transforms.Compose(
        [
            transforms.Resize((IMG_SIZE, IMG_SIZE), transforms.InterpolationMode.BILINEAR),
            transforms.ToTensor(),
            transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ]
    )

    def usual() -> torch.Tensor:
        indices = shuffled.batch_indices(next(steps))
        images = torch.stack([transform(Image.fromarray(pixels[index])) for index in indices])
        torch.tensor([int(labels[index]) for index in indices])
        return images

    return lambda: next(prepared).images, usual


def _spec() -> RunSpec:
    """A run that reads 64 images per step, without flips: the usual way here has none either."""
    return RunSpec(
        protocol="strong",
        model=ModelSpec(name="vit_tiny_patch16_224", img_size=IMG_SIZE, patch_size=16, num_classes=10),
        data=DataSpec(name="cifar10", fingerprint="generated", images=POOL, flip=False),
        world_size=1,
        ranks_per_node=1,
        data_parallel=1,
        engine="deepspeed",
        zero_stage=0,
        precision="fp32",
        device="cpu",
        micro_batch=BATCH,
        grad_accum=1,
        global_batch=BATCH,
        solved="micro_batch",
        optimizer=OptimizerSection(),
        measure=MeasureSpec(warmup_steps=0, steps=1, seconds=None, seed=0),
        threads_per_rank=1,
    )


if __name__ == "__main__":
    print(json.dumps(_on_one_core(*(int(word) for word in sys.argv[1:]))))
