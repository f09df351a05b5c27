"""What the kernel says of a host at one moment: CPU time, memory of the ranks, clock and energy of the CPUs.

A field that cannot be read is None, and `reasons` say why: virtual machines show no clock, and since 2020 kernels keep
the energy counters for root (CVE-2020-8694).
"""

from __future__ import annotations

import resource
from collections.abc import Sequence
from pathlib import Path

import psutil

from vitscale.records.samples import HostSample

_ROOT = Path("/")


class HostSensors:
    """The sensors of this host.

    Args:
        pids: processes of the ranks.
        cores: cores whose clock is read. A few: some kernels take 10 ms for each.
        root: where /sys and /proc lie; tests give their own.
    """

    def __init__(self, pids: Sequence[int], cores: Sequence[int], root: Path = _ROOT) -> None:
        self.reasons: dict[str, str] = {}
        """Field -> why it was None, the first time."""
        self._ranks = [psutil.Process(pid) for pid in pids]
        self._clocks = [root / f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq" for core in cores]
        self._zones = rapl_zones(root)
        self._memory = root / "proc/vmstat"
        self._first_s: dict[str, float] = {}

    def read(self) -> HostSample:
        """This host now."""
        rank_cpu_s, rss_bytes = self._of_ranks()
        return HostSample(
            cpu_s=self._since_first("cpu_s", self._machine_cpu_s()),
            rank_cpu_s=self._since_first("rank_cpu_s", rank_cpu_s),
            rank_rss_bytes=rss_bytes,
            swapped_in_bytes=self._swapped_in_bytes(),
            core_clock_hz=self._core_clock_hz(),
            energy_j=self._energy_j(),
        )

    def _machine_cpu_s(self) -> float | None:
        times = psutil.cpu_times()
        busy_s = times.user + times.system + times.nice + times.irq + times.softirq  # `user` holds the guests'
        return self._told("cpu_s", busy_s or None, "/proc/stat counts no time")

    def _of_ranks(self) -> tuple[float | None, int | None]:
        """CPU time and resident sets of the ranks."""
        cpu_s, rss_bytes = 0.0, 0
        try:
            for rank in self._ranks:
                with rank.oneshot():
                    times = rank.cpu_times()
                    cpu_s += times.user + times.system
                    rss_bytes += rank.memory_info().rss
        except psutil.Error as error:
            for field in ("rank_cpu_s", "rank_rss_bytes"):
                self.reasons.setdefault(field, f"a rank's process cannot be read: {type(error).__name__}")
            return None, None
        return cpu_s, rss_bytes

    def _swapped_in_bytes(self) -> int | None:
        try:
            counts = dict(line.split() for line in self._memory.read_text().splitlines())
            swapped = int(counts["pswpin"]) * resource.getpagesize()
        except (OSError, ValueError, KeyError):
            self.reasons.setdefault("swapped_in_bytes", "no counter of swapped pages in /proc/vmstat")
            return None
        since = self._since_first("swapped_in_bytes", swapped)
        return None if since is None else int(since)

    def _core_clock_hz(self) -> float | None:
        try:
            clocks = [int(path.read_text()) * 1e3 for path in self._clocks]
        except (OSError, ValueError):
            clocks = []
        mean = sum(clocks) / len(clocks) if clocks else None
        return self._told("core_clock_hz", mean, "the kernel shows no clock (no cpufreq in /sys)")

    def _energy_j(self) -> float | None:
        if not self._zones:
            return self._told("energy_j", None, "no energy counters of the CPU (no RAPL in /sys/class/powercap)")
        try:
            return sum(zone.energy_j() for zone in self._zones)
        except (OSError, ValueError) as error:
            return self._told("energy_j", None, f"RAPL: {getattr(error, 'strerror', None) or error}")

    def _since_first(self, field: str, value: float | None) -> float | None:
        """A counter since its first reading. One that goes back is not the counter it was."""
        if value is None:
            return None
        since = round(value - self._first_s.setdefault(field, value), 3)  # the kernel counts in 10 ms
        return self._told(field, since if since >= 0 else None, "the counter went back")

    def _told(self, field: str, value: float | None, reason: str) -> float | None:
        if value is None:
            self.reasons.setdefault(field, reason)
        return value


class RaplZone:
    """One energy counter of the CPU, unwrapped: it counts microjoules and starts again at `max_energy_range_uj`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._last_uj: int | None = None
        self._sum_uj = 0

    def energy_j(self) -> float:
        """Energy since the first call.

        Raises:
            OSError: the counter is for root only, or gone.
            ValueError: it holds no number.
        """
        now_uj = int((self._folder / "energy_uj").read_text())
        if self._last_uj is not None:
            spent_uj = now_uj - self._last_uj
            if spent_uj < 0:
                spent_uj += int((self._folder / "max_energy_range_uj").read_text())
            self._sum_uj += spent_uj
        self._last_uj = now_uj
        return self._sum_uj / 1e6


def rapl_zones(root: Path = _ROOT) -> list[RaplZone]:
    """Packages and their memory; not `core` and `uncore`, which a package holds, nor `psys`, which holds packages."""
    found = []
    for folder in sorted((root / "sys/class/powercap").glob("intel-rapl:*")):  # AMD's too
        try:
            name = (folder / "name").read_text().strip()
        except OSError:
            continue
        if name == "dram" or name.startswith("package"):
            found.append(RaplZone(folder))
    return found
