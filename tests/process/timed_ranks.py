"""One rank of `test_step_split_of_ranks.py`: each run with its collectives timed and untimed."""

import dataclasses
import json
import time
from pathlib import Path

import torch

from vitscale.config.runspec import RunSpec
from vitscale.worker import engines, optimizers, sequence, silence, tensor
from vitscale.worker.clock import NoClock, clock_for
from vitscale.worker.distributed import barrier, clock_offsets, connect
from vitscale.worker.loop import Losses, run_steps
from vitscale.worker.model import build_model
from vitscale.worker.pipeline import Batch

STEPS = 5
STEADY_STEPS = 48
"""As many as allow all blocks without collectives."""


class Random:
    """Batches that are noise; on rank 1 they come late."""

    def __init__(self, spec, rank, dtype, sleep_s):
        self.spec, self.rank, self.dtype, self.sleep_s = spec, rank, dtype, sleep_s
        self.generator = torch.Generator().manual_seed(spec.data_rank(rank))

    def __next__(self):
        if self.rank == 1:
            time.sleep(self.sleep_s / self.spec.grad_accum)
        size = self.spec.model.img_size
        images = torch.randn(self.spec.micro_batch, 3, size, size, generator=self.generator).to(self.dtype)
        return Batch(images, torch.randint(0, 10, (self.spec.micro_batch,), generator=self.generator))


def taken(spec, ranks, clock, sleep_s):
    """Losses and times of some steps, and what further ones take with and without collectives."""
    model = build_model(spec, ranks.device)
    if spec.sequence_parallel:
        sequence.shard(model, spec.sequence_parallel)
    if spec.tensor_parallel:
        tensor.shard(model, spec.tensor_parallel)
    engine = engines.build(spec, model, optimizers.build(model, spec.optimizer, ranks.device))
    losses, batches = Losses(spec.grad_accum), Random(spec, ranks.rank, engine.dtype, sleep_s)
    barrier()
    run_steps(range(STEPS), engine, batches, clock, losses, spec.grad_accum, lambda _step: None)
    times = clock.drain()
    found = silence.measure(engine, batches, spec, ranks, STEADY_STEPS, 0).model_dump() if sleep_s else None
    engine.close()
    return losses.drain(), times, found


def main(out, specs, shift_s, sleep_s):
    """Rank 1 is on a host of its own, whose clock is `shift_s` ahead, and sleeps for `sleep_s` in every step."""
    torch.set_num_threads(1)
    ranks = dataclasses.replace(connect("cpu", "gloo"), ranks_per_node=1)
    if ranks.rank == 1:
        here = time.perf_counter_ns
        time.perf_counter_ns = lambda: here() + round(shift_s * 1e9)
    specs = [RunSpec.model_validate(spec) for spec in specs]
    for name in {spec.engine for spec in specs}:
        engines.prepare(name, "cpu")
    offsets = clock_offsets(ranks, time.perf_counter_ns)
    found = {"offsets": offsets, "runs": []}
    for spec in specs:
        untimed, _, _ = taken(spec, ranks, NoClock(), 0.0)
        clock = clock_for(ranks, offsets[ranks.node].ns)
        timed, times, silent = taken(spec, ranks, clock, sleep_s)
        traffic = [[*kind, *one] for kind, one in times[-1].traffic.items()]
        run = {"untimed": untimed, "timed": timed, "times": times, "traffic": traffic, "unread": clock.unread}
        found["runs"].append({**run, "silence": silent})
    Path(out, f"{ranks.rank}.json").write_text(json.dumps(found))
    barrier()
