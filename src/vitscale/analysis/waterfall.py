"""From ideal throughput to the measured one: what each part of the step takes beyond its ideal.

1. Work per rank is `global_batch / N`. The ideal step of a run is the baseline's step times the run's work per rank
   over the baseline's: 1/N of it in `strong` from one rank, all of it in `weak`. At that step every rank would be as
   fast as the baseline's.
2. The ideal of a part is scaled alike, so that the differences of the parts sum to the difference of the steps.
3. A part that was not timed in either run counts as 0 there: its time is in another part of that run, and the
   difference in that part's bar.
4. Divided by the measured step, the differences are what is lost of ideal throughput, since efficiency is the ideal
   step over the measured one: 1 - ideal/step = sum of difference/step.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from vitscale.analysis.cause import Waterfall
from vitscale.analysis.ranks import latest
from vitscale.analysis.result import RankStep, RunResult, Shares

BARS: dict[str, tuple[str, ...]] = {
    "data": ("data",),
    "compute": ("forward", "backward"),
    "optimizer": ("optimizer",),
    "comm_exposed": ("comm_exposed",),
    "wait": ("wait",),
    "comm_and_wait": ("comm_and_wait",),
    "launch_gap": ("launch_gap",),
    "other": ("other",),
}
"""Field of `Waterfall` without its unit -> fields of `Shares`."""


def with_waterfalls(results: tuple[RunResult, ...], baselines: dict[str, str]) -> tuple[RunResult, ...]:
    """The results, each with its waterfall where it has a baseline other than itself."""
    by_id = {result.run_id: result for result in results}
    bases = {name: by_id[run_id] for name, run_id in baselines.items()}
    return tuple(
        result.model_copy(update={"waterfall": waterfall(result, bases[result.series])})
        if result.series in bases
        else result
        for result in results
    )


def work_ratio(result: RunResult, base: RunResult) -> float | None:
    """Images per rank and step over the baseline's; None where either is not told."""
    if result.global_batch is None or base.global_batch is None:
        return None
    return result.global_batch / result.world_size / (base.global_batch / base.world_size)


def waterfall(result: RunResult, base: RunResult) -> Waterfall | None:
    """From the baseline's throughput per rank to the run's; None of the baseline itself, or without a split."""
    ratio = work_ratio(result, base)
    untold = result.shares.other is None or base.shares.other is None
    if result.run_id == base.run_id or untold or ratio is None:
        return None
    if result.step_s is None or base.step_s is None or base.images_per_s is None:
        return None
    ideal_s = base.step_s.median * ratio
    beyond = {
        f"{bar}_s": _difference(
            _seconds(result.shares, parts, result.step_s.median), _seconds(base.shares, parts, ideal_s)
        )
        for bar, parts in BARS.items()
    }
    return Waterfall(
        ideal_step_s=ideal_s,
        ideal_images_per_s=base.images_per_s.median / base.world_size * result.world_size,
        step_s=result.step_s.median,
        **beyond,
    )


def _seconds(shares: Shares, parts: tuple[str, ...], step_s: float) -> float | None:
    told = [value for part in parts if (value := getattr(shares, part)) is not None]
    return sum(told) * step_s if told else None


def _difference(measured_s: float | None, ideal_s: float | None) -> float | None:
    return None if measured_s is None and ideal_s is None else (measured_s or 0.0) - (ideal_s or 0.0)


def late_parts(ranks: Sequence[RankStep], cost_s: float | None = None) -> dict[str, float]:
    """Seconds of the mean rank's split that late ranks cost, by field of `Waterfall`; empty where no rank is late.

    Of N ranks n are late. (N - n)/N of the cost is what the others wait for them, no more than the mean rank waits;
    n/N is what the late ones take longer, in the parts in which they are behind the others, by how far they are.

    Args:
        ranks: every rank of a run.
        cost_s: how much longer the others wait than the late ranks, in a step; None is the mean of the others.
    """
    waits_s = [one.seconds["wait"] for one in ranks if "wait" in one.seconds]
    late = latest(waits_s) if waits_s else ()
    if not late:
        return {}
    behind = {f"{bar}_s": _behind_s(ranks, late, parts) for bar, parts in BARS.items()}
    lateness_s = -behind.pop("wait_s")
    # Steps are equally long on all ranks: what no part has of the lateness is in none.
    behind["other_s"] = lateness_s - sum(behind.values())
    whole_s = sum(max(0.0, value_s) for value_s in behind.values())
    if not whole_s:  # they differ in the last bit
        return {}
    cost_s = lateness_s if cost_s is None else cost_s
    share = len(late) / len(ranks)
    own = {name: cost_s * share * value_s / whole_s for name, value_s in behind.items() if value_s > 0}
    return {**own, "wait_s": min(cost_s * (1 - share), fmean(waits_s))}


def _behind_s(ranks: Sequence[RankStep], late: Sequence[int], parts: Sequence[str]) -> float:
    """How much longer the late ranks take for some parts than the others, each on the mean."""
    took_s = [sum(one.seconds.get(part, 0.0) for part in parts) for one in ranks]
    others_s = [value_s for rank, value_s in enumerate(took_s) if rank not in late]
    return fmean(took_s[rank] for rank in late) - fmean(others_s)
