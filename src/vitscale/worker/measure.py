"""One launch of one run: build, take its steps, and leave its records.

Longer than 300 lines: a launch reads from its start to its manifest in one place.
"""

from __future__ import annotations

import datetime
import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path

import torch

from vitscale.config.knobs import EngineSection
from vitscale.config.runspec import RunSpec
from vitscale.data.reader import Split, open_split
from vitscale.errors import DivergedError
from vitscale.hardware.probe import Machine
from vitscale.records.collectives import write_collectives
from vitscale.records.round import Beat, Entry, Heartbeat, Round
from vitscale.records.schema import (
    Device,
    Layout,
    Manifest,
    Memory,
    Overhead,
    Parity,
    Status,
    Times,
)
from vitscale.records.writer import RUN, SETTLED, make_folder, write_json, write_manifest
from vitscale.worker import (
    closer,
    devices,
    engines,
    inject,
    knobs,
    launch_gap,
    memory,
    overhead,
    parity,
    step_line,
    traffic,
    uneven,
)
from vitscale.worker.clock import StepTimes, clock_for
from vitscale.worker.distributed import Ranks, barrier, clock_offsets, gathered, largest
from vitscale.worker.loop import Losses, Skips, run_steps
from vitscale.worker.model import build_model
from vitscale.worker.pipeline import Batches, open_batches
from vitscale.worker.sampling import NoSampler, Sampler, sampler
from vitscale.worker.step_lines import open_step_lines
from vitscale.worker.wrap import wrap

FEWEST_STEPS, MOST_STEPS = 5, 1000


class Launch:
    """One launch on one rank. The launch folder is rank 0's to make and to finish."""

    def __init__(
        self,
        entry: Entry,
        number: int,
        round_: Round,
        ranks: Ranks,
        data_root: Path,
        peaks: Mapping[str, float] | None = None,
        proofs: parity.Proofs | None = None,
        meter: overhead.Meter | None = None,
    ) -> None:
        self.entry = entry
        self.peaks = peaks or {}
        self.proofs = proofs or parity.Proofs()
        self.meter = meter or overhead.Meter()
        self.spec = RunSpec.model_validate(entry.spec)
        self.number = number
        self.round = round_
        self.ranks = ranks
        self.folder = Path(entry.folder)
        self.data_root = data_root
        self.started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.losses = Losses(self.spec.grad_accum)
        offsets = clock_offsets(ranks) if ranks.nodes > 1 else []
        error_ns = max((one.error_ns for one in offsets), default=0)
        self.clock = clock_for(ranks, offsets[ranks.node].ns if offsets else 0, error_ns)
        self.warmup: list[StepTimes] = []
        self.steady: list[StepTimes] = []
        self.notes: dict[str, object] = {"clock_offset_s": [list(one.seconds) for one in offsets]} if offsets else {}
        self.unread: dict[str, str] = {}
        self.pauses: dict[str, float] = {}
        self.built = self.data_s = 0.0
        self.memory_peak_bytes: int | None = None
        self.sampler: Sampler = NoSampler()
        self.environ: Mapping[str, str] = os.environ
        self.delays = inject.delays(entry.run_id, ranks.rank, os.environ)

    def serve(self, heartbeat: Heartbeat, machine: Machine, start: Times) -> None:
        """Run the launch and write its records; `start` is what came before it.

        Raises:
            DivergedError: a loss is not finite.
        """
        self.heartbeat = heartbeat
        if self.ranks.rank == 0:
            make_folder(self.folder)
            write_json(self.folder / RUN, self.spec.model_dump(mode="json"))
        heartbeat.beat(Beat(self.number, "setup", 0, 0, None))
        self.parity = self._parity() if self.entry.parity else None
        data_rank = self.spec.data_rank(self.ranks.rank)
        calibrated = partial(self.beat, "calibrate", steps=uneven.STEPS)
        self.split = uneven.split_of(self.spec, self.entry, self.ranks, self.round.sharing, build_model, calibrated)
        self.dealt = uneven.dealt(self.spec, self.split, data_rank)
        self.losses = Losses(self.dealt.grad_accum)
        heartbeat.beat(Beat(self.number, "setup", 1, 0, None))  # its own time, after steps of another kind
        began = time.perf_counter()
        if not devices.reset_peak_memory(self.ranks.device):
            self.notes["memory_peak_bytes"] = "of the process since its start, not of this launch"
        self.model = build_model(self.spec, self.ranks.device)
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        built, self.optimizer = wrap(self.dealt, self.model)
        turned = self.spec.knobs or EngineSection()
        self.engine = uneven.weighted(built, self.split, data_rank)
        self.skips = Skips(self.engine)
        self.writer = open_step_lines(self.folder, self.ranks)
        self.sampler = sampler(self.folder, self.spec.measure.sample_s, self.ranks, self.round)
        self.built = time.perf_counter()
        setup_s = self.built - began
        with knobs.attention(turned):
            status, reason = self._take_steps()
        self.writer.close()
        self.sampler.close()
        # The peak of the memory is read before any further step.
        cores, peak = self.round.cores_of(self.ranks.rank), self.peaks.get(self.spec.precision)
        device = devices.describe(self.ranks, machine, cores, peak, self.memory_peak_bytes)
        if self.ranks.rank == 0:
            write_collectives(self.folder, traffic.records([step.traffic for step in self.steady]))
        times, versions = self._times(start, setup_s), devices.versions(machine)
        if status == "ok":
            wanted = self._wanted()
            standing = self._manifest(status, reason, times, device, versions, parameters)
            if self.ranks.rank == 0:  # kept, should a rank not outlive what comes after the window
                write_json(self.folder / SETTLED, standing.model_dump(mode="json"))
            with knobs.attention(turned):
                more = {"overhead": self._time_measuring(), **self._look_closer(wanted), "memory": self._count_memory()}
            device = device.model_copy(update=more)
        manifest = self._manifest(status, reason, times, device, versions, parameters)
        self.engine.close()
        del self.model, self.optimizer
        devices.return_memory(self.ranks.device)
        if self.ranks.rank == 0:
            write_manifest(self.folder, manifest)
        barrier()

    def _parity(self) -> Parity | None:
        found = self.proofs.of(self.spec, self.ranks, build_model, lambda step: self.beat("parity", step, parity.STEPS))
        devices.return_memory(self.ranks.device)
        return found

    def _take_steps(self) -> tuple[Status, str | None]:
        """The steps of a measurement; training overrides this."""
        opened = open_batches(self.dealt, self.open("train"), self.ranks, self.engine.dtype)
        engine, batches = inject.slowed(self.engine, opened, self.delays)
        self.meet()
        try:
            for phase, count in (("warmup", self._warmup_steps), ("steady", self._agree_on_steps)):
                self.sampler.enter(phase)
                first = len(self.warmup)
                steps = range(first, first + count())
                after_step = self.after_step(phase, steps.stop if phase == "steady" else 0)
                run_steps(steps, engine, batches, self.clock, self.losses, self.dealt.grad_accum, after_step)
                if phase == "steady" and self.ranks.device.type == "cuda":
                    self._time_work(engine, batches)
                self.record(phase, steps)
        finally:
            opened.close()
        return "ok", None

    def meet(self) -> None:
        """Wait for all ranks: what comes next is the first step."""
        barrier()
        self.data_s = time.perf_counter() - self.built

    def _time_work(self, engine: engines.Engine, batches: Batches) -> None:
        """Let the clock know what the window's steps take a device that never waits for its host."""
        torch.cuda.synchronize()
        self.memory_peak_bytes = devices.peak_memory_bytes(self.ranks.device)
        self.sampler.enter("held")
        pace, device = self._pace_s() if self.warmup else None, self.ranks.device
        untold = launch_gap.time_work(self.clock, engine, batches, self.dealt, device, pace, self.beat)
        self.unread |= {"launch_gap_s": untold} if untold else {}

    def _wanted(self) -> Collection[str]:
        """What to look closer at; why not at the rest is noted."""
        refused = closer.refusals(self.spec, len(self.steady))
        self.unread |= {field: reason for field, reason in refused.items() if reason}
        return [field for field, reason in refused.items() if reason is None]

    def _look_closer(self, wanted: Collection[str]) -> Mapping[str, object]:
        """More steps, when what the records tell is closed: they change no figure of the window."""
        if not wanted:
            return {}
        taken = itertools.count(1)  # not 0: the steps have begun, and each has its time limit
        fault = inject.fault(self.entry.run_id, self.ranks.rank, self.environ, "closer")

        def beat() -> None:
            step = next(taken)
            self.beat("silence", step, 0)
            if fault is not None:
                fault(step)

        beat()
        opened = open_batches(self.dealt, self.open("train"), self.ranks, self.engine.dtype)
        engine, batches = inject.slowed(self.engine, opened, self.delays)
        peak = self.peaks.get(self.spec.precision)
        try:
            looking = closer.Closer(self.dealt, self.folder, self.ranks, self.model, engine, batches, peak, beat)
            found, missing = looking.look(wanted, len(self.steady), self.entry.launch)
        finally:
            opened.close()
        self.unread |= missing
        return found

    def _time_measuring(self) -> Overhead | None:
        beat = partial(self.beat, "overhead", 1, 1)
        return self.meter.measure(self.steady, self.ranks, beat, self.sampler.share)

    def _count_memory(self) -> Memory | None:
        self.beat("memory", 1, 0)
        return memory.measure(self.engine, self.dealt, self.ranks.device)

    def open(self, split: str) -> Split:
        """The run's images."""
        path = os.environ.get("VITSCALE_DATA_PATH")
        return open_split(self.spec.data.name, split, self.data_root, Path(path) if path else None)  # type: ignore[arg-type]

    def record(self, window: str, steps: range) -> None:
        """Write the lines of steps that were taken since the last call.

        Raises:
            DivergedError: a loss of any rank is not finite; all ranks raise it.
        """
        losses = self.losses.drain()
        self.write(window, steps, self.clock.drain(), losses)
        first_bad = next((step for step, loss in zip(steps, losses, strict=True) if not math.isfinite(loss)), math.inf)
        worst = -largest(-first_bad, self.ranks.device)
        if math.isfinite(worst):
            self.writer.sync()
            raise DivergedError(f"the loss of step {int(worst)} is not finite", "lower optimizer.lr")

    def write(self, window: str, steps: range, times: list[StepTimes], losses: list[float]) -> None:
        """Append step lines; a loss that is not finite is null there."""
        (self.warmup if window == "warmup" else self.steady).extend(times)
        finite = [loss if math.isfinite(loss) else None for loss in losses]
        lines = zip(steps, times, finite, strict=True)
        windows = dict.fromkeys(self.skips.steps, "skipped")
        self.writer.write(
            step_line.record(self.dealt, self.ranks.rank, windows.get(step, window), step, time_, loss)
            for step, time_, loss in lines
        )
        self.sampler.flush()

    def beat(self, phase: str, step: int, steps: int) -> None:
        """Say where this rank is."""
        self.heartbeat.beat(Beat(self.number, phase, step, steps, self.losses.glance()))

    def after_step(self, phase: str, total: int) -> Callable[[int], None]:
        """What follows each step of a phase of `total` steps: a heartbeat, and the fault that a test asked for."""
        fault = inject.fault(self.entry.run_id, self.ranks.rank, self.environ)

        def after_step(step: int) -> None:
            self.beat(phase, step + 1, total)
            self.skips.see(step)
            if fault is not None:
                fault(step)

        return after_step

    def _warmup_steps(self) -> int:
        return self.spec.measure.warmup_steps

    def _agree_on_steps(self) -> int:
        """Steady steps: as given, or as many as fit in `seconds` at the slowest rank's pace; the same on every rank."""
        measure = self.spec.measure
        if measure.steps is not None:
            barrier()
            return measure.steps
        assert measure.seconds is not None
        pace = largest(self._pace_s(), self.ranks.device)
        return min(max(math.ceil(measure.seconds / pace), FEWEST_STEPS), MOST_STEPS)

    def _pace_s(self) -> float:
        """A typical step of the warm-up; the first one chooses kernels and makes buffers."""
        return statistics.median(step["step"] for step in self.warmup[1:] or self.warmup)

    def _times(self, start: Times, setup_s: float) -> Times:
        taken = self.warmup or self.steady
        own = {
            "setup_s": setup_s,
            "data_s": self.data_s,
            "first_step_s": taken[0]["step"] if taken else None,
            "warmup_s": sum(step["step"] for step in self.warmup),
            "steady_s": sum(step["step"] for step in self.steady),
        }
        return start.model_copy(update={**own, **self.pauses})

    def _manifest(
        self,
        status: Status,
        reason: str | None,
        times: Times,
        device: Device,
        versions: dict[str, str],
        parameters: int,
    ) -> Manifest:
        """The launch as all ranks see it. All ranks at once."""
        unread = self.sampler.reasons() | self.clock.unread | self.unread
        seen = gathered({"device": device.model_dump(mode="json"), "unread": unread}, self.ranks)
        unread = {field: reason for one in reversed(seen) for field, reason in one["unread"].items()}
        return Manifest(
            run_id=self.entry.run_id,
            launch=self.entry.launch,
            round=self.round.name,
            started=self.started,
            status=status,
            reason=reason,
            source="measured",
            versions=versions,
            devices=tuple(Device.model_validate(one["device"]) for one in seen),
            layout=Layout(
                world_size=self.round.world_size,
                nodes=self.round.nodes,
                ranks_per_node=self.round.ranks_per_node,
                backend=self.spec.torch_backend,
            ),
            times=times,
            steps=len(self.warmup) + len(self.steady),
            parameters=parameters,
            parity=self.parity,
            split=self.split,
            notes={**self.notes, **unread},
        )
