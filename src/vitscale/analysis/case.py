"""One run as the rules of the verdict see it: what each launch spent per step, on the mean and on the typical rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, median, median_low
from typing import NamedTuple

from vitscale.analysis.cause import Kind
from vitscale.analysis.collectives import carried, idle_busbw
from vitscale.analysis.devices import DeviceUse
from vitscale.analysis.interval import Interval
from vitscale.analysis.load import Run
from vitscale.analysis.result import RunResult
from vitscale.analysis.split import StepFigures
from vitscale.config.runspec import RunSpec
from vitscale.records.collectives import CollectiveRecord
from vitscale.records.links import LinkBenchmark
from vitscale.statistics import Estimate, difference_interval, interval

NOTICEABLE = 0.03
"""A cause takes this share of the step. Below it, removing it would gain less than most measurements can tell."""

NEGLIGIBLE = 0.01
"""The lower end of a cause's interval is above this share of the step: "more than about nothing"."""

OF_ONE_LAUNCH = 0.10
"""The share in place of `NOTICEABLE` where a single launch gives no interval."""

SMALL_MESSAGE_BYTES = 64 * 1024
"""Where the link's latency was not timed, a collective of fewer bytes is all latency: at 1 GB/s it takes 65 us."""


class Best(NamedTuple):
    """The best that any run of the study reached; None where none was told."""

    busbw_bytes_per_s: float | None
    clock_hz: float | None


UNKNOWN = Best(None, None)


@dataclass(frozen=True)
class Found:
    """A cause before it is judged."""

    kind: Kind
    values_s: Sequence[float]
    """What it costs of a step, one per launch."""
    evidence: str
    reference_s: Sequence[float] = ()
    """What of it the run it is compared with would take, one per launch of that; empty is nothing."""
    against: Case | None = None
    """That run."""
    detail: str | None = None
    rank: int | None = None
    node: int | None = None
    within: Kind | None = None
    signed: bool = False
    """A difference between ranks: chance gives it either sign, so that values above 0 are no sign of a cost by
    themselves."""

    @property
    def seconds(self) -> Estimate:
        """Cost with its interval over the launches."""
        if not self.reference_s and not self.signed and min(self.values_s) > 0:
            return interval(self.values_s)
        return difference_interval(self.values_s, self.reference_s)


class LinkUse(NamedTuple):
    """What a run's collectives did per step, all together."""

    calls: float
    bytes: float
    wire_s: float
    latency_share: float
    """Of the time on the wire: the idle link's latency at each call, or where that was not timed, what the bytes would
    not take at the study's best bus bandwidth."""
    busbw_bytes_per_s: float | None
    """Mean over the collectives, by their time."""
    idle_bytes_per_s: float | None
    """The same of the idle link, for the same operations at such sizes; None where it was not timed, or among
    other ranks."""


@dataclass(frozen=True)
class Case:
    """A run with figures."""

    run: Run
    spec: RunSpec
    result: RunResult
    step_s: float
    """Median over the launches."""
    best: Best = UNKNOWN
    idle: LinkBenchmark | None = None
    """The run's links on their own."""
    base: Case | None = None
    """The series' baseline; None of the baseline itself."""
    twin: Case | None = None
    """The same micro-batch on as few ranks as the baseline, where the run's is another one and the study has such."""
    ratio: float = 1.0
    """Work per rank over the baseline's."""
    figures: Sequence[StepFigures] = field(default_factory=tuple)
    """Of the launches that count."""

    @property
    def ranks(self) -> int:
        """World size."""
        return self.run.facts.world_size

    @property
    def communication_told(self) -> bool:
        """Whether forward, backward and optimizer are without communication and waiting."""
        return self.ranks == 1 or bool(self.mean_s("comm_exposed") and self.mean_s("wait"))

    def mean_s(self, name: str) -> list[float]:
        """Seconds of a step, mean over ranks, one per launch; empty where any launch lacks it."""
        shares = [{**one.parts, **one.beside}.get(name) for one in self.figures]
        told = [share * one.step_s for share, one in zip(shares, self.figures, strict=True) if share is not None]
        return told if len(told) == len(self.figures) else []

    def rank_s(self, *names: str) -> list[list[float]]:
        """Seconds of a step by rank, the names added up, one list per launch; empty where any launch lacks one."""
        if not all(name in one.by_rank for one in self.figures for name in names):
            return []
        return [
            [sum(of_rank) * one.step_s for of_rank in zip(*(one.by_rank[name] for name in names), strict=True)]
            for one in self.figures
        ]

    def typical_s(self, *names: str) -> list[float]:
        """The same of the median rank, of an even number the faster: one late rank does not count."""
        return [median_low(ranks) for ranks in self.rank_s(*names)]

    def ideal_s(self, *names: str) -> list[float]:
        """What the typical rank of the baseline would take for this run's work, one per launch of the baseline."""
        return [] if self.base is None else [self.ratio * value for value in self.base.typical_s(*names)]

    def stands(self, seconds: Estimate) -> bool:
        """Whether a cost is more than noise."""
        if seconds.low is None:
            return seconds.median >= OF_ONE_LAUNCH * self.step_s
        return seconds.median >= NOTICEABLE * self.step_s and seconds.low > NEGLIGIBLE * self.step_s

    def gain(self, seconds: Estimate) -> Interval:
        """Throughput without a cost over throughput with it; a cost cannot exceed the step."""
        low, mid, high = (
            None if one is None else self.step_s / (self.step_s - min(max(one, 0.0), 0.99 * self.step_s))
            for one in (seconds.low, seconds.median, seconds.high)
        )
        assert mid is not None
        return Interval(median=mid, low=low, high=high)

    @property
    def uses(self) -> list[DeviceUse]:
        """Of the launches whose devices were sampled."""
        return [one.devices for one in self.run.counted if one.devices is not None]

    @property
    def others_cores(self) -> float | None:
        """Cores at work for others than the ranks, median over the launches; None where the host does not tell."""
        both = [(use.cpu_cores, use.rank_cores) for use in self.uses]
        told = [every - ours for every, ours in both if every is not None and ours is not None]
        return median(told) if told else None

    @property
    def clock_hz(self) -> float | None:
        """Median clock of the GPUs; None where there are none."""
        return clock(self.run)

    @property
    def link(self) -> LinkUse | None:
        """Of the first launch that recorded its collectives."""
        timed = [line for line in carried(self.run) if line.wire_s_per_step and line.calls_per_step]
        wire_s = sum(line.wire_s_per_step or 0.0 for line in timed)
        if not wire_s:
            return None
        rates = [(line.busbw_bytes_per_s, line.wire_s_per_step) for line in timed]
        idle = [(idle_busbw(self.idle, line), line.wire_s_per_step) for line in timed]
        return LinkUse(
            calls=sum(line.calls_per_step for line in timed),
            bytes=sum(line.bytes_per_step for line in timed),
            wire_s=wire_s,
            latency_share=sum(self._latency_s(line) for line in timed) / wire_s,
            busbw_bytes_per_s=sum(rate * time for rate, time in rates if rate and time) / wire_s or None,
            idle_bytes_per_s=_mean_rate(idle),
        )

    def _latency_s(self, line: CollectiveRecord) -> float:
        wire_s = line.wire_s_per_step or 0.0
        if self.idle is not None and self.idle.world_size == line.group_size:
            return min(wire_s, line.calls_per_step * self.idle.latency_s)
        if line.bytes_per_step / line.calls_per_step < SMALL_MESSAGE_BYTES:
            return wire_s
        best = self.best.busbw_bytes_per_s
        return wire_s * max(0.0, 1 - line.busbw_bytes_per_s / best) if best and line.busbw_bytes_per_s else 0.0


def _mean_rate(rates: Sequence[tuple[float | None, float | None]]) -> float | None:
    """Of rates with their times, by these; None where one is not told."""
    known = [(rate, time) for rate, time in rates if rate is not None and time is not None]
    total_s = sum(time for _, time in known)
    return sum(rate * time for rate, time in known) / total_s if len(known) == len(rates) and total_s else None


def calls(per_step: float) -> str:
    """`1 collective`, `2.5 collectives`."""
    return f"{per_step:.3g} collective{'' if per_step == 1 else 's'}"


def best_of(runs: Sequence[Run]) -> Best:
    """The best bus bandwidth and the highest median clock of any run of a study."""
    lines = [line for run in runs for one in run.counted for line in one.record.collectives]
    rates = [line.busbw_bytes_per_s for line in lines if line.busbw_bytes_per_s]
    clocks = [found for run in runs if (found := clock(run)) is not None]
    return Best(max(rates, default=None), max(clocks, default=None))


def clock(run: Run) -> float | None:
    """Mean over the launches of the GPUs' median clock."""
    told = [list(one.devices.sm_clocks_hz.values()) for one in run.counted if one.devices is not None]
    medians = [median(clocks) for clocks in told if clocks]
    return fmean(medians) if medians else None
