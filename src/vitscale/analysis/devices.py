"""What a launch's device samples say of its steady window. Definitions:

1. A line tells what happened since the line before. What the steady window took is the sum over its lines.
2. The devices are the ranks' GPUs, or on CPUs the packages of the hosts. The rest of the machines is not counted.
3. A GPU's energy is its counter's; without one its power integrated over time (trapezoids). A CPU's is RAPL's.
4. Power is the devices' energy over time, added up over all devices. Where one device is missing it is None: a sum of
   the others would be a figure of something else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median
from typing import NamedTuple

from vitscale.records.samples import GpuSample, HostSample, Sample

Span = tuple[Sample, Sample]
"""A line of the steady window and the one before it."""


@dataclass(frozen=True)
class DeviceUse:
    """The steady window of one launch; None is not measured."""

    seconds: float
    """Length of what was sampled."""
    power_w: float | None
    """Mean power of all devices."""
    utilisation_share: float | None
    """Mean over GPUs and samples."""
    temperature_peak_c: float | None
    """Highest of any GPU."""
    sm_clocks_hz: dict[int, float]
    """rank -> median clock of its GPU."""
    memory_clock_shares: dict[int, float]
    """rank -> median clock of its GPU's memory over the highest it can have."""
    swapped_in_bytes: float | None
    """Memory that all hosts read back from swap."""
    throttled: dict[str, float]
    """Reason -> share of all GPUs' samples in which it held a clock down."""
    foreign_share: float | None
    """Share of all GPUs' samples with a foreign process."""
    cpu_cores: float | None
    """Cores at work, over all hosts."""
    rank_cores: float | None
    """Of these, at work for the ranks."""


class Reading(NamedTuple):
    """One GPU or host over one line's time, as a chart draws it."""

    time_s: float
    """End of it, since the steps began."""
    window: str
    power_w: float | None
    utilisation_share: float | None
    """GPUs only."""
    temperature_c: float | None
    """GPUs only."""
    cpu_cores: float | None
    """Cores at work; hosts only."""


def device_use(samples: Sequence[Sample], world_size: int, nodes: int) -> DeviceUse | None:
    """Figures of one launch; None where its steady window has no samples.

    Args:
        samples: by node and time.
        world_size: ranks, each of which has a GPU if any has.
        nodes: hosts, each of which has a CPU.
    """
    spans = [span for span in _spans(samples) if span[1].window == "steady"]
    if not spans:
        return None
    gpus = [gpu for _, line in spans for gpu in line.gpus]
    told = [gpu for gpu in gpus if gpu.throttle is not None]
    reasons = sorted({reason for gpu in told for reason in gpu.throttle or ()})
    foreign = [gpu.foreign_processes for gpu in gpus if gpu.foreign_processes is not None]
    temperatures = [gpu.temperature_c for gpu in gpus if gpu.temperature_c is not None]
    by_node: dict[int, list[Span]] = {}
    for span in spans:
        by_node.setdefault(span[1].node, []).append(span)
    seconds = {node: sum(line.time_s - before.time_s for before, line in of_node) for node, of_node in by_node.items()}
    whole = len(by_node) == nodes
    return DeviceUse(
        seconds=max(seconds.values()),
        power_w=_power_w(spans, seconds, world_size if gpus else nodes),
        utilisation_share=_mean([gpu.utilisation_share for gpu in gpus]),
        temperature_peak_c=max(temperatures, default=None),
        sm_clocks_hz=_medians((gpu.rank, gpu.sm_clock_hz) for gpu in gpus),
        memory_clock_shares=_medians((gpu.rank, _memory_clock_share(gpu)) for gpu in gpus),
        swapped_in_bytes=_total(spans, "swapped_in_bytes"),
        throttled={reason: fmean(reason in (gpu.throttle or ()) for gpu in told) for reason in reasons},
        foreign_share=fmean(count > 0 for count in foreign) if foreign else None,
        cpu_cores=_cores(by_node, seconds, "cpu_s") if whole else None,
        rank_cores=_cores(by_node, seconds, "rank_cpu_s") if whole else None,
    )


def readings(samples: Sequence[Sample]) -> dict[str, list[Reading]]:
    """`GPU of rank 0`, `host 0` -> what was read of it, in order; the first line has no time before it."""
    found: dict[str, list[Reading]] = {}
    for span in _spans(samples):
        before, line = span
        for gpu in line.gpus:
            power_w = gpu.power_w if gpu.power_w is not None else _rate(_gpu_energy_j(span, gpu), span)
            found.setdefault(f"GPU of rank {gpu.rank}", []).append(
                Reading(line.time_s, line.window, power_w, gpu.utilisation_share, gpu.temperature_c, None)
            )
        power_w, cores = (_rate(_spent(before.host, line.host, field), span) for field in ("energy_j", "cpu_s"))
        found.setdefault(f"host {line.node}", []).append(Reading(line.time_s, line.window, power_w, None, None, cores))
    return found


def _spans(samples: Sequence[Sample]) -> Iterator[Span]:
    for before, line in pairwise(samples):
        if before.node == line.node and line.time_s > before.time_s:
            yield before, line


def _power_w(spans: Sequence[Span], seconds: dict[int, float], devices: int) -> float | None:
    """Mean power of all devices; None unless each of them told its energy in every line. `seconds` are by node."""
    energy_j: dict[tuple[int, int], float | None] = {}
    for span in spans:
        before, line = span
        of_line = {(line.node, gpu.rank): _gpu_energy_j(span, gpu) for gpu in line.gpus}
        for device, spent in (of_line or {(line.node, -1): _spent(before.host, line.host, "energy_j")}).items():
            so_far = energy_j.get(device, 0.0)
            energy_j[device] = None if so_far is None or spent is None else so_far + spent
    powers = [joules / seconds[node] for (node, _), joules in energy_j.items() if joules is not None]
    return sum(powers) if len(powers) == devices and sum(powers) > 0 else None


def _gpu_energy_j(span: Span, gpu: GpuSample) -> float | None:
    """By the counter, else power over time."""
    before, line = span
    earlier = next((one for one in before.gpus if one.rank == gpu.rank), None)
    if earlier is None:
        return None
    if gpu.energy_j is not None and earlier.energy_j is not None:
        return gpu.energy_j - earlier.energy_j
    if gpu.power_w is not None and earlier.power_w is not None:
        return (gpu.power_w + earlier.power_w) / 2 * (line.time_s - before.time_s)
    return None


def _spent(before: HostSample, after: HostSample, field: str) -> float | None:
    first, last = getattr(before, field), getattr(after, field)
    return None if first is None or last is None else last - first


def _cores(by_node: dict[int, list[Span]], seconds: dict[int, float], field: str) -> float | None:
    """Cores at work over all hosts: CPU time over time."""
    cores = 0.0
    for node, spans in by_node.items():
        spent = [_spent(before.host, line.host, field) for before, line in spans]
        if None in spent:
            return None
        cores += sum(one for one in spent if one is not None) / seconds[node]
    return cores


def _rate(spent: float | None, span: Span) -> float | None:
    return None if spent is None else spent / (span[1].time_s - span[0].time_s)


def _memory_clock_share(gpu: GpuSample) -> float | None:
    clock, highest = gpu.memory_clock_hz, gpu.memory_clock_max_hz
    return clock / highest if clock is not None and highest else None


def _medians(told: Iterable[tuple[int, float | None]]) -> dict[int, float]:
    """Of each rank."""
    by_rank: dict[int, list[float]] = {}
    for rank, value in told:
        if value is not None:
            by_rank.setdefault(rank, []).append(value)
    return {rank: median(values) for rank, values in by_rank.items()}


def _total(spans: Sequence[Span], field: str) -> float | None:
    """Of a counter of the hosts, over all of them; None where any line lacks it."""
    spent = [_spent(before.host, line.host, field) for before, line in spans]
    return None if None in spent else sum(one for one in spent if one is not None)


def _mean(values: Sequence[float | None]) -> float | None:
    told = [value for value in values if value is not None]
    return fmean(told) if told else None
