"""One launch of one run: build, warm up, measure, and leave its records."""

from __future__ import annotations

import datetime
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from torch import nn

from vitscale.config.runspec import RunSpec
from vitscale.data.reader import open_split
from vitscale.errors import DivergedError
from vitscale.hardware.probe import Machine
from vitscale.records.round import Beat, Entry, Heartbeat, Round
from vitscale.records.schema import Device, Layout, Manifest, StepRecord, Times
from vitscale.records.writer import RUN, StepWriter, make_folder, write_json, write_manifest
from vitscale.worker import devices, engines, inject, optimizers
from vitscale.worker.clock import StepTimes, clock_for
from vitscale.worker.distributed import Ranks, barrier, gathered, largest
from vitscale.worker.loop import Losses, run_steps
from vitscale.worker.pipeline import open_batches

FEWEST_STEPS, MOST_STEPS = 5, 1000


class Launch:
    """One launch on one rank. The launch folder is rank 0's to make and to finish."""

    def __init__(self, entry: Entry, number: int, round_: Round, ranks: Ranks, data_root: Path) -> None:
        self.entry = entry
        self.spec = RunSpec.model_validate(entry.spec)
        self.number = number
        self.round = round_
        self.ranks = ranks
        self.folder = Path(entry.folder)
        self.data_root = data_root
        self.started = _utc_now()
        self.losses = Losses(self.spec.grad_accum)
        self.clock = clock_for(ranks.device)

    def measure(self, heartbeat: Heartbeat, machine: Machine, process_start_s: float | None) -> None:
        """Run the launch and write its records.

        Raises:
            DivergedError: a loss is not finite.
        """
        began = time.perf_counter()
        if self.ranks.rank == 0:
            make_folder(self.folder)
            write_json(self.folder / RUN, self.spec.model_dump(mode="json"))
        heartbeat.beat(Beat(self.number, "setup", 0, 0, None))
        own_peak = devices.reset_peak_memory(self.ranks.device)
        model = build_model(self.spec, self.ranks.device)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        engine = engines.build(self.spec, model, optimizers.build(model, self.spec.optimizer, self.ranks.device))
        split = open_split(self.spec.data.name, "train", self.data_root, _data_path())
        batches = open_batches(self.spec, split, self.ranks, engine.dtype)
        barrier()
        writer = StepWriter(self.folder, self.ranks.rank)

        def window(phase: str, steps: range) -> list[StepTimes]:
            after_step = self._after_step(heartbeat, phase, steps)
            run_steps(steps, engine, batches, self.clock, self.losses, self.spec.grad_accum, after_step)
            times = self.clock.drain()
            self._record(writer, phase, steps, times)
            return times

        setup_s = time.perf_counter() - began
        try:
            warmup = window("warmup", range(self.spec.measure.warmup_steps))
            steady_steps = self._agree_on_steps(warmup)
            first = len(warmup)
            steady = window("steady", range(first, first + steady_steps))
        finally:
            batches.close()
        writer.close()
        times = Times(
            process_start_s=process_start_s,
            setup_s=setup_s,
            first_step_s=(warmup or steady)[0]["step"],
            warmup_s=sum(step["step"] for step in warmup),
            steady_s=sum(step["step"] for step in steady),
        )
        device = devices.describe(self.ranks, machine, self._cores())
        seen = gathered(device.model_dump(mode="json"), self.ranks)
        engine.close()
        devices.return_memory(self.ranks.device)
        if self.ranks.rank == 0:
            notes = {} if own_peak else {"memory_peak_bytes": "of the process since its start, not of this launch"}
            notes["comm_exposed_s"] = "DeepSpeed's communication is inside backward_s and optimizer_s; not timed apart"
            notes["wait_s"] = notes["comm_exposed_s"]
            manifest = Manifest(
                **self._identity(),
                status="ok",
                source="measured",
                versions=devices.versions(machine),
                devices=tuple(Device.model_validate(one) for one in seen),
                layout=layout(self.round),
                times=times,
                steps=first + steady_steps,
                parameters=parameters,
                notes=notes,
            )
            write_manifest(self.folder, manifest)
        barrier()

    def _identity(self) -> dict[str, object]:
        return {
            "run_id": self.entry.run_id,
            "launch": self.entry.launch,
            "round": self.round.name,
            "started": self.started,
        }

    def _cores(self) -> tuple[int, ...]:
        return self.round.cores[self.ranks.local_rank] if self.round.cores else ()

    def _after_step(self, heartbeat: Heartbeat, phase: str, steps: range) -> Callable[[int], None]:
        fault = inject.fault(self.entry.run_id, self.ranks.rank, os.environ)
        total = steps.stop if phase == "steady" else 0

        def after_step(step: int) -> None:
            heartbeat.beat(Beat(self.number, phase, step + 1, total, self.losses.glance()))
            if fault is not None:
                fault(step)

        return after_step

    def _agree_on_steps(self, warmup: list[StepTimes]) -> int:
        """Steady steps: as given, or as many as fit in `seconds` at the slowest rank's pace; the same on every rank."""
        measure = self.spec.measure
        if measure.steps is not None:
            barrier()
            return measure.steps
        assert measure.seconds is not None
        # The first step chooses kernels and makes buffers.
        typical = statistics.median(step["step"] for step in warmup[1:] or warmup)
        pace = largest(typical, self.ranks.device)
        return min(max(math.ceil(measure.seconds / pace), FEWEST_STEPS), MOST_STEPS)

    def _record(self, writer: StepWriter, window: str, steps: range, times: list[StepTimes]) -> None:
        losses = self.losses.drain()
        images = self.spec.micro_batch * self.spec.grad_accum
        finite = [loss if math.isfinite(loss) else None for loss in losses]
        writer.write(
            StepRecord(
                step=step,
                window=window,
                rank=self.ranks.rank,
                loss=loss,
                images=images,
                step_s=time_["step"],
                data_s=time_.get("data"),
                forward_s=time_.get("forward"),
                backward_s=time_.get("backward"),
                optimizer_s=time_.get("optimizer"),
                comm_exposed_s=None,
                wait_s=None,
            )
            for step, time_, loss in zip(steps, times, finite, strict=True)
        )
        first_bad = finite.index(None) if None in finite else math.inf
        worst = -largest(-first_bad, self.ranks.device)
        if math.isfinite(worst):
            raise DivergedError(f"the loss of step {steps[int(worst)]} is not finite", "lower optimizer.lr")


def build_model(spec: RunSpec, device: torch.device) -> nn.Module:
    """The run's timm model in training mode, with the same initial weights on every rank and device."""
    torch.manual_seed(spec.measure.seed)
    model: nn.Module = timm.create_model(
        spec.model.name,
        img_size=spec.model.img_size,
        patch_size=spec.model.patch_size,
        num_classes=spec.model.num_classes,
    )
    return model.train().to(device)


def layout(round_: Round) -> Layout:
    """Where the ranks of a round are."""
    return Layout(
        world_size=round_.world_size,
        nodes=round_.nodes,
        ranks_per_node=round_.ranks_per_node,
        backend="nccl" if round_.device == "cuda" else "gloo",
    )


def _data_path() -> Path | None:
    path = os.environ.get("VITSCALE_DATA_PATH")
    return Path(path) if path else None


def _utc_now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
