"""One rank of `instrumentation` and `sampling`: the worker's own loop, in blocks with something on and with it off."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitscale.config.runspec import RunSpec
from vitscale.data.reader import open_split
from vitscale.records.round import ROUND, Heartbeat, Round
from vitscale.records.writer import StepWriter
from vitscale.worker import engines, optimizers
from vitscale.worker.clock import NoClock
from vitscale.worker.distributed import barrier, connect, largest
from vitscale.worker.engines import Engine
from vitscale.worker.loop import Losses, Skips, run_steps
from vitscale.worker.measure import Launch
from vitscale.worker.model import build_model
from vitscale.worker.pipeline import Batch, Batches, open_batches
from vitscale.worker.sampling import DEFAULT_S, NoSampler, sampler

WARMUP_STEPS = 5
ALONE_STEPS = 200
FASTER = 20
"""Samples are taken so many times as often as by default: what they cost is then seen beside the noise."""


class NoLosses(Losses):
    """Holds nothing: without records nobody reads the losses."""

    def add(self, loss: Tensor) -> None:
        """Nothing."""


class NoModel:
    """An engine and its batches that take no time, so that what is around them is all there is."""

    dtype = torch.float32

    def __init__(self) -> None:
        self._batch = Batch(torch.zeros(1, 10), torch.zeros(1, dtype=torch.int64))

    def __next__(self) -> Batch:
        return self._batch

    def __call__(self, images: Tensor) -> Tensor:
        """The images."""
        return images

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Nothing."""

    def step(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Blocks:
    """The two ways of taking some steps, each timed from outside."""

    def __init__(self, folder: Path, spec: RunSpec, launch: Launch, engine: Engine) -> None:
        self.launch, self.accum, self.folder = launch, spec.grad_accum, folder / "launch"
        launch.heartbeat = Heartbeat(folder, launch.ranks.rank, launch.ranks.ranks_per_node)
        launch.skips = Skips(engine)
        launch.dealt = spec
        launch.writer = StepWriter(self.folder, launch.ranks.rank)

    def on(self, steps: range, engine: Engine, batches: Batches) -> float:
        """With clock, losses, heartbeat, step lines, and the ranks' agreement that all losses are finite."""
        launch = self.launch
        began = time.perf_counter()
        after_step = launch.after_step("steady", steps.stop)
        run_steps(steps, engine, batches, launch.clock, launch.losses, self.accum, after_step)
        launch.record("steady", steps)
        return time.perf_counter() - began

    def off(self, steps: range, engine: Engine, batches: Batches) -> float:
        """With none of these."""
        began = time.perf_counter()
        run_steps(steps, engine, batches, NoClock(), NoLosses(self.accum), self.accum, lambda _step: None)
        return time.perf_counter() - began

    def sampled(self, steps: range, engine: Engine, batches: Batches) -> float:
        """As `on`, with samples of the devices `FASTER` times as often as by default."""
        launch = self.launch
        launch.sampler = sampler(self.folder, DEFAULT_S / FASTER, launch.ranks, launch.round)
        launch.sampler.enter("steady")
        took_s = self.on(steps, engine, batches)
        launch.sampler.close()
        launch.sampler = NoSampler()
        return took_s

    def one_sample_s(self) -> float:
        """Time of a sample where this rank takes them, else 0."""
        asked = sampler(self.folder, 3600.0, self.launch.ranks, self.launch.round)
        asked.enter("steady")
        began = time.perf_counter()
        for _ in range(ALONE_STEPS):
            asked.enter("steady")
        took_s = time.perf_counter() - began
        asked.close()
        return 0.0 if isinstance(asked, NoSampler) else took_s / ALONE_STEPS


def main(folder: Path, kind: str, pairs: int, steps: int) -> None:
    """Serve `pairs` pairs of blocks of `steps` steps; rank 0 writes `blocks.json`.

    Args:
        folder: of the round.
        kind: `records`, everything that measures is on or off; `sampling`, the samples of the devices are.
        pairs: blocks of each way.
        steps: of a block.
    """
    round_ = Round.read(folder / ROUND)
    local_rank = int(os.environ["LOCAL_RANK"])
    if round_.cores:
        os.sched_setaffinity(0, round_.cores[local_rank])
    spec = RunSpec.model_validate(round_.entries[0].spec)
    if spec.threads_per_rank is not None:
        torch.set_num_threads(spec.threads_per_rank)
        torch.set_num_interop_threads(1)
    ranks = connect(round_.device, spec.torch_backend)
    engines.prepare(spec.engine, round_.device)
    model = build_model(spec, ranks.device)
    engine = engines.build(spec, model, optimizers.build(model, spec.optimizer, ranks.device))
    data_root = Path(os.environ["VITSCALE_DATA"])
    batches = open_batches(spec, open_split(spec.data.name, "train", data_root), ranks, engine.dtype)
    blocks = Blocks(folder, spec, Launch(round_.entries[0], 0, round_, ranks, data_root), engine)
    blocks.off(range(WARMUP_STEPS), engine, batches)
    on, off = (blocks.sampled, blocks.on) if kind == "sampling" else (blocks.on, blocks.off)
    seen: dict[str, list[float]] = {"on_s": [], "off_s": [], "alone_s": [], "steps": [steps]}
    for pair in range(pairs):
        ways = [("on_s", on), ("off_s", off)]
        for name, way in ways if pair % 2 else ways[::-1]:
            barrier()
            seen[name].append(largest(way(range(steps), engine, batches), ranks.device))
    stub: Any = NoModel()
    alone = range(ALONE_STEPS)
    for _ in range(5):
        if kind == "sampling":
            seen["alone_s"].append(blocks.one_sample_s())
        else:
            difference_s = blocks.on(alone, stub, stub) - blocks.off(alone, stub, stub)
            seen["alone_s"].append(difference_s / ALONE_STEPS)
    if ranks.rank == 0:
        (folder / "blocks.json").write_text(json.dumps(seen))
    barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    sys.stdout.flush()
    os._exit(0)
