"""`devices.node<n>.jsonl`: what the sensors of a node said beside the steps, one line per sample.

A sample is taken every `measure.sample_s` and as each window begins and ends. Counters (`energy_j`, `cpu_s`,
`rank_cpu_s`, `swapped_in_bytes`) count from the launch's first sample, so that what a stretch of time took is a
difference of two lines. A field that cannot be read is null, and `notes` of the manifest say why, once.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import Field

from vitscale.records.schema import Frozen, NotNegative

Count = Annotated[int, Field(ge=0)]


def samples_name(node: int) -> str:
    """File name of a node's samples."""
    return f"devices.node{node:03d}.jsonl"


class GpuSample(Frozen):
    """One GPU, as NVML reports it."""

    rank: Count
    """Rank that uses it; of several the lowest."""
    utilisation_share: NotNegative | None = None
    """Share of NVML's last sampling period (up to 1 s) in which a kernel ran."""
    memory_used_bytes: Count | None = None
    """Memory in use, whoever uses it."""
    temperature_c: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """Temperature of the chip, degrees Celsius."""
    power_w: NotNegative | None = None
    """Power of the board, as averaged by the driver."""
    energy_j: NotNegative | None = None
    """Energy since the launch's first sample, by the board's counter."""
    sm_clock_hz: NotNegative | None = None
    """Clock of the multiprocessors."""
    memory_clock_hz: NotNegative | None = None
    """Clock of the memory."""
    memory_clock_max_hz: NotNegative | None = None
    """The highest that its memory can have."""
    throttle: tuple[str, ...] | None = None
    """What holds the clocks down: `sw_power_cap`, `hw_slowdown`, `sw_thermal_slowdown`, `hw_thermal_slowdown`,
    `hw_power_brake_slowdown`, `sync_boost`, `applications_clocks_setting`, `display_clock_setting`. Empty is
    nothing, or idleness."""
    foreign_processes: Count | None = None
    """Processes that compute on it and are no rank of this launch."""


class HostSample(Frozen):
    """One host."""

    cpu_s: NotNegative | None = None
    """CPU time of all processes of the machine since the launch's first sample, in core-seconds."""
    rank_cpu_s: NotNegative | None = None
    """The part of it that this node's ranks took."""
    rank_rss_bytes: Count | None = None
    """Resident sets of this node's ranks, added up; pages that they share are counted for each."""
    swapped_in_bytes: Count | None = None
    """Memory of any process that the host read back from swap since the launch's first sample."""
    core_clock_hz: NotNegative | None = None
    """Clock of the CPU: mean over the first core of each rank."""
    energy_j: NotNegative | None = None
    """Energy of all CPU packages, and of their memory where it is told, since the launch's first sample (RAPL)."""


class Sample(Frozen):
    """One node at one moment."""

    time_s: NotNegative
    """Since the launch's steps began, by a monotonic clock of this node."""
    window: str
    """What the launch did since the line before: `setup`, `warmup`, `steady`, `evaluate`, `checkpoint`, or
    `held` (a device that waits for its host, see `launch_gap_s`)."""
    node: Count
    """Number of the host, from 0."""
    gpus: tuple[GpuSample, ...] = ()
    """The GPUs of this node's ranks and no others; empty where the run is on CPUs."""
    host: HostSample = HostSample()


class SampleWriter:
    """Appends samples of one node."""

    def __init__(self, folder: Path, node: int) -> None:
        self._file = (folder / samples_name(node)).open("ab")

    def write(self, samples: Iterable[Sample]) -> None:
        """Append lines and hand them to the kernel."""
        self._file.write("".join(f"{sample.model_dump_json()}\n" for sample in samples).encode())
        self._file.flush()

    def close(self) -> None:
        """fsync and close."""
        os.fsync(self._file.fileno())
        self._file.close()
