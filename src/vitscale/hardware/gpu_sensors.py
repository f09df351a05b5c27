"""What NVML says of some GPUs at one moment. Nothing here waits for a kernel, and no failure of a sensor is an error.

Devices differ in what they report (a T4 has no fan, a MIG instance no utilisation, a virtual GPU little of anything),
and a driver may go away: a field that cannot be read is None, and `reasons` say why.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from vitscale.records.samples import GpuSample

Handle = Any

# Bits of NVML's clocks event reasons (nvml.h). 0x1 is idleness, which holds nothing down.
_THROTTLE = {
    0x2: "applications_clocks_setting",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
}


class GpuSensors:
    """The sensors of the GPUs that ranks of this node use.

    Args:
        uuids: rank -> UUID of its GPU as NVML writes it, `GPU-…`; empty leaves NVML alone.
        pids: processes of the ranks; whoever else computes on one of these GPUs is foreign.
        nvml: stands in for the module `pynvml` of nvidia-ml-py.
    """

    def __init__(self, uuids: Mapping[int, str], pids: Collection[int], nvml: Any = None) -> None:
        self.reasons: dict[str, str] = {}
        """Field -> why it was None, the first time."""
        self._pids = frozenset(pids)
        self._ranks_on: dict[str, list[int]] = {}
        for rank, uuid in sorted(uuids.items()):
            self._ranks_on.setdefault(uuid, []).append(rank)
        self._first_j: dict[int, float] = {}
        self._nvml = self._start(nvml) if uuids else None

    def _start(self, nvml: Any) -> Any:
        if nvml is None:
            import pynvml

            nvml = pynvml
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            self.reasons["gpus"] = f"NVML: {error}"
            return None
        return nvml

    def read(self) -> tuple[GpuSample, ...]:
        """Every GPU once, by its lowest rank."""
        return tuple(self._read(uuid, ranks) for uuid, ranks in self._ranks_on.items())

    def close(self) -> None:
        """Let go of NVML."""
        if self._nvml is not None:
            try:
                self._nvml.nvmlShutdown()
            except self._nvml.NVMLError as error:
                self.reasons.setdefault("gpus", f"NVML: {error}")
            self._nvml = None

    def _read(self, uuid: str, ranks: list[int]) -> GpuSample:
        rank = ranks[0]
        handle = self._value("gpus", lambda nvml, _: nvml.nvmlDeviceGetHandleByUUID(uuid), None)
        if handle is None:
            return GpuSample(rank=rank)
        values = {name: self._value(name, read, handle) for name, read in _READINGS.items()}
        pids = self._value("foreign_processes", _processes, handle)
        return GpuSample(
            rank=rank,
            energy_j=self._energy_j(rank, self._value("energy_j", _energy_j, handle)),
            foreign_processes=None if pids is None else self._foreign(pids, len(ranks)),
            **values,
        )

    def _value(self, field: str, read: Callable[[Any, Handle], Any], handle: Handle) -> Any:
        """What a call returns; None where the device, the driver or this version of nvidia-ml-py does not have it."""
        if self._nvml is None:
            return None
        try:
            return read(self._nvml, handle)
        except (self._nvml.NVMLError, AttributeError) as error:
            self.reasons.setdefault(field, f"NVML: {error}")
            return None

    def _energy_j(self, rank: int, counter_j: float | None) -> float | None:
        """The counter since its first reading. It starts at 0 each time the driver is loaded."""
        if counter_j is None:
            return None
        since = counter_j - self._first_j.setdefault(rank, counter_j)
        if since < 0:
            self.reasons.setdefault("energy_j", "the counter went back")
            return None
        return since

    def _foreign(self, pids: list[int], ranks: int) -> int | None:
        """Processes that are not ours.

        In a container NVML may name processes as the host numbers them, none of which we know. Each rank has a context
        there, so that what is left of their number is foreign.
        """
        known = len(self._pids.intersection(pids))
        if not known and len(pids) < ranks:
            self.reasons.setdefault("foreign_processes", "NVML does not show the ranks' own processes here")
            return None
        return len(pids) - (known or ranks)


def _throttle(nvml: Any, gpu: Handle) -> tuple[str, ...]:
    bits = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu)
    return tuple(name for bit, name in _THROTTLE.items() if bits & bit)


def _processes(nvml: Any, gpu: Handle) -> list[int]:
    return [process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(gpu)]


def _energy_j(nvml: Any, gpu: Handle) -> float:
    return float(nvml.nvmlDeviceGetTotalEnergyConsumption(gpu)) / 1e3


_READINGS: dict[str, Callable[[Any, Handle], Any]] = {
    "utilisation_share": lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100,
    "memory_used_bytes": lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used,
    "temperature_c": lambda nvml, gpu: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
    "power_w": lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3,
    "sm_clock_hz": lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM) * 1e6,
    "memory_clock_hz": lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM) * 1e6,
    "memory_clock_max_hz": lambda nvml, gpu: nvml.nvmlDeviceGetMaxClockInfo(gpu, nvml.NVML_CLOCK_MEM) * 1e6,
    "throttle": _throttle,
}
