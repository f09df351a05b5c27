"""Findings about the devices: clocks held down, clocks that differ, and others who use the same machine."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from vitscale.analysis.devices import DeviceUse
from vitscale.analysis.load import Run, StudyData
from vitscale.analysis.result import Finding
from vitscale.units import decimal, number, percent, size

THROTTLED_SHARE = 0.05
"""`throttled`: a reason holds clocks down in this share of a run's samples. A lone sample of a window is chance."""

MIXED_CLOCKS = 0.05
"""`mixed_clocks`: the fastest GPU's median clock over the slowest's, less 1."""

OTHER_LOAD_CORES = 0.5
"""`other_load`: cores at work for others than the ranks. The command itself and the kernel take a few hundredths."""

SLOW_MEMORY = 0.03
"""`memory_clock`: the median clock of a GPU's memory is this much below the highest it can have."""

SWAPPED_BYTES_PER_S = 1 << 20
"""`swapping`: memory that is read back from swap. Pages that nobody missed for long come back more slowly."""

_CHOSEN = ("applications_clocks_setting", "display_clock_setting", "sync_boost")
_GRAVE = ("hw_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown", "sw_thermal_slowdown")
_IN_WORDS = {
    "sw_power_cap": "the power limit",
    "hw_slowdown": "the hardware's protection",
    "hw_thermal_slowdown": "heat",
    "sw_thermal_slowdown": "heat (by the driver)",
    "hw_power_brake_slowdown": "the power supply",
    "applications_clocks_setting": "clocks that were set",
    "display_clock_setting": "a display's clocks",
    "sync_boost": "a slower GPU of its group",
}


def find(study: StudyData) -> Iterator[Finding]:
    """Every finding about the devices of launches that count."""
    for run in study.runs:
        uses = [one.devices for one in run.counted if one.devices is not None]
        if uses:
            for check in (_throttled, _memory_clock, _swapping, _mixed_clocks, _foreign_processes, _other_load):
                yield from check(study.labels[run.run_id], run, uses)


def in_words(reason: str) -> str:
    """What NVML calls a reason, as a person would."""
    return _IN_WORDS.get(reason, reason)


def _throttled(label: str, run: Run, uses: list[DeviceUse]) -> Iterator[Finding]:
    reasons = sorted({reason for use in uses for reason in use.throttled})
    shares = {reason: sum(use.throttled.get(reason, 0.0) for use in uses) / len(uses) for reason in reasons}
    shares = {reason: share for reason, share in shares.items() if share >= THROTTLED_SHARE}
    if shares:
        told = ", ".join(f"{in_words(one)} in {percent(share, 0)}" for one, share in shares.items())
        yield Finding(
            kind="throttled",
            severity="warning" if any(reason in _GRAVE for reason in shares) else "note",
            evidence=f"{label}: clocks were held down by {told} of the samples of the steady window.",
            hint=None
            if all(reason in _CHOSEN for reason in shares)
            else "look at cooling and at the power limit (nvidia-smi -q -d PERFORMANCE,POWER)",
            runs=(run.run_id,),
        )


def _memory_clock(label: str, run: Run, uses: list[DeviceUse]) -> Iterator[Finding]:
    slow = [
        use.memory_clock_shares for use in uses if min(use.memory_clock_shares.values(), default=1) < 1 - SLOW_MEMORY
    ]
    if slow:
        slowest = min(slow, key=lambda shares: min(shares.values()))
        rank = min(slowest, key=slowest.__getitem__)
        yield Finding(
            kind="memory_clock",
            severity="warning",
            evidence=f"{label}: the memory of rank {rank}'s GPU ran at {percent(slowest[rank], 0)} of its highest "
            "clock (median); what waits for memory, as updates and normalisation do, is as much slower.",
            hint="look who set it, and at power and heat (nvidia-smi -q -d CLOCK,PERFORMANCE)",
            runs=(run.run_id,),
        )


def _swapping(label: str, run: Run, uses: list[DeviceUse]) -> Iterator[Finding]:
    rates = [use.swapped_in_bytes / use.seconds for use in uses if use.swapped_in_bytes is not None]
    if rates and median(rates) >= SWAPPED_BYTES_PER_S:
        yield Finding(
            kind="swapping",
            severity="warning",
            evidence=f"{label}: its hosts read {size(median(rates))} of memory a second back from swap in the steady "
            "window; whoever needs it stands still until it is there.",
            hint="fewer ranks per host, a smaller model or micro-batch, or less of what else runs there",
            runs=(run.run_id,),
        )


def _mixed_clocks(label: str, run: Run, uses: list[DeviceUse]) -> Iterator[Finding]:
    apart = [use.sm_clocks_hz for use in uses if _spread(use.sm_clocks_hz) > MIXED_CLOCKS]
    if apart:
        widest = max(apart, key=_spread)
        slowest, fastest = (pick(widest, key=widest.__getitem__) for pick in (min, max))
        yield Finding(
            kind="mixed_clocks",
            severity="warning",
            evidence=f"{label}: the GPU of rank {slowest} ran at {decimal(widest[slowest], 'Hz')} and that of rank "
            f"{fastest} at {decimal(widest[fastest], 'Hz')} (medians), {percent(_spread(widest))} apart; the step "
            "waits for the slowest.",
            hint="the same clocks and power limit on all GPUs (nvidia-smi -q -d CLOCK,POWER)",
            runs=(run.run_id,),
        )


def _foreign_processes(label: str, run: Run, uses: list[DeviceUse]) -> Iterator[Finding]:
    shares = [use.foreign_share for use in uses if use.foreign_share is not None]
    if any(shares):
        yield Finding(
            kind="foreign_processes",
            severity="warning",
            evidence=f"{label}: processes that are not of this study were on its GPUs in "
            f"{percent(sum(shares) / len(shares), 0)} of the samples of the steady window.",
            hint="look who it is (nvidia-smi), and measure on GPUs that nobody else uses",
            runs=(run.run_id,),
        )


def _other_load(label: str, run: Run, uses: list[DeviceUse]) -> Iterator[Finding]:
    others = [
        use.cpu_cores - use.rank_cores for use in uses if use.cpu_cores is not None and use.rank_cores is not None
    ]
    if others and median(others) > OTHER_LOAD_CORES:
        yield Finding(
            kind="other_load",
            severity="note",
            evidence=f"{label}: {number(median(others))} cores were at work for others than its ranks in the steady "
            "window.",
            hint="measure while nothing else runs",
            runs=(run.run_id,),
        )


def _spread(clocks: dict[int, float]) -> float:
    slowest = min(clocks.values(), default=0.0)
    return max(clocks.values()) / slowest - 1 if slowest else 0.0
