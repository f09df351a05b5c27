"""Samples of the devices beside the steps: one thread of one rank per node, which asks sensors and nothing else.

No CUDA call is made and no step waits, except that a window begins and ends with a sample: what a window took is then
a difference of two lines.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Protocol

import torch

from vitscale.hardware.gpu_sensors import GpuSensors
from vitscale.hardware.host_sensors import HostSensors
from vitscale.records.round import Round
from vitscale.records.samples import Sample, SampleWriter
from vitscale.worker.distributed import Ranks, gathered

DEFAULT_S = 1.0


class Sampler(Protocol):
    """What a launch asks of its sampler."""

    def enter(self, window: str) -> None:
        """The launch goes on with `window`; the first call begins the samples."""

    def flush(self) -> None:
        """Write the samples that were taken since the last call."""

    def close(self) -> None:
        """Take the last sample, write it, and end."""

    def reasons(self) -> dict[str, str]:
        """Field -> why it could not be read."""

    @property
    def share(self) -> float:
        """Share of the time until `close` that the samples between windows' ends took."""


class NoSampler:
    """For ranks that leave the sampling to another, and for runs that want none."""

    def enter(self, window: str) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""

    def reasons(self) -> dict[str, str]:
        """None."""
        return {}

    @property
    def share(self) -> float:
        """Nothing."""
        return 0.0


class NodeSampler:
    """Samples of one node, held in memory until a flush.

    Args:
        writer: gets the samples.
        node: number of this host.
        interval_s: time between samples.
        gpus: sensors of the GPUs of this node's ranks.
        host: sensors of the host.
    """

    def __init__(self, writer: SampleWriter, node: int, interval_s: float, gpus: GpuSensors, host: HostSensors) -> None:
        self._writer, self._node, self._interval_s = writer, node, interval_s
        self._gpus, self._host = gpus, host
        self._window, self._began_s = "setup", 0.0
        self._spent_s, self._ended_s = 0.0, 0.0
        self._held: list[Sample] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def enter(self, window: str) -> None:
        """The launch goes on with `window`; the first call begins the samples."""
        if self._thread is None:
            self._began_s = time.monotonic()
        with self._lock:
            self._take()
            self._window = window
        if self._thread is None:
            self._thread = threading.Thread(target=self._go_on, name="sampling", daemon=True)
            self._thread.start()

    def flush(self) -> None:
        """Write the samples that were taken since the last call."""
        with self._lock:
            held, self._held = self._held, []
        self._writer.write(held)

    def close(self) -> None:
        """Take the last sample, write it, and end."""
        self._ended.set()
        self._ended_s = time.monotonic()
        if self._thread is not None:
            self._thread.join()
            self._take()
        self.flush()
        self._writer.close()
        self._gpus.close()

    def reasons(self) -> dict[str, str]:
        """Field -> why it could not be read."""
        sensors = {"gpus": self._gpus.reasons, "host": self._host.reasons}
        return {
            where if field == where else f"{where}.{field}": reason
            for where, reasons in sensors.items()
            for field, reason in reasons.items()
        }

    @property
    def share(self) -> float:
        """Share of the time until `close` that the samples between windows' ends took, in CPU time of their thread."""
        return self._spent_s / (self._ended_s - self._began_s) if self._thread is not None else 0.0

    def _go_on(self) -> None:
        while not self._ended.wait(self._interval_s):
            with self._lock:
                self._take()
            self._spent_s = time.thread_time()

    def _take(self) -> None:
        time_s = round(time.monotonic() - self._began_s, 6)
        gpus, host = self._gpus.read(), self._host.read()
        self._held.append(Sample(time_s=time_s, window=self._window, node=self._node, gpus=gpus, host=host))


def sampler(folder: Path, sample_s: float | None, ranks: Ranks, round_: Round) -> Sampler:
    """The sampler of this rank: the first of a machine has one. All ranks call it: they tell each other their processes
    and GPUs.

    Args:
        folder: launch folder, which is there.
        sample_s: time between samples; None is `DEFAULT_S`, 0 is off.
        ranks: this rank among the others.
        round_: what the ranks were started for.
    """
    machine = 0 if round_.one_machine else ranks.node
    own = {"machine": machine, "pid": os.getpid(), "uuid": _uuid(ranks.device)}
    told = [(rank, one) for rank, one in enumerate(gathered(own, ranks)) if one["machine"] == machine]
    interval_s = DEFAULT_S if sample_s is None else sample_s
    if not interval_s or told[0][0] != ranks.rank:
        return NoSampler()
    pids = [one["pid"] for _, one in told]
    gpus = GpuSensors({rank: one["uuid"] for rank, one in told if one["uuid"]}, pids)
    first_cores = [one[0] for one in round_.cores] or sorted(os.sched_getaffinity(0))[:1]
    return NodeSampler(SampleWriter(folder, ranks.node), ranks.node, interval_s, gpus, HostSensors(pids, first_cores))


def _uuid(device: torch.device) -> str | None:
    """NVML's name of a CUDA device: its order may be another than CUDA's. Kept in memory, never recorded."""
    if device.type != "cuda":
        return None
    return f"GPU-{str(torch.cuda.get_device_properties(device).uuid).removeprefix('GPU-')}"
