"""What each rank of a run spent per step: where the mean rank's split hides who is late."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median_high

from vitscale.analysis.load import Run
from vitscale.analysis.result import RankStep
from vitscale.analysis.split import MEASURED


def rank_steps(run: Run) -> tuple[RankStep, ...]:
    """One per rank, mean over the launches; none of a single rank, or where ranks have no lines of their own."""
    launches = [one for one in run.figures if one.by_rank]
    if run.facts.world_size == 1 or not launches or len(launches) < len(run.figures):
        return ()
    manifest = next((one.record.manifest for one in run.counted if one.record.manifest), None)
    nodes = {device.rank: device.node for device in manifest.devices} if manifest else {}
    told = [name for name in (*MEASURED, "late") if all(name in one.by_rank for one in launches)]
    ranks = range(min((len(one.by_rank[name]) for one in launches for name in told), default=0))
    return tuple(
        RankStep(
            rank=rank,
            node=nodes.get(rank),
            seconds={name: fmean(one.by_rank[name][rank] * one.step_s for one in launches) for name in told},
        )
        for rank in ranks
    )


def latest(waits_s: Sequence[float]) -> tuple[int, ...]:
    """The ranks that wait least, where the others wait twice as long for them; else none.

    Args:
        waits_s: what each rank waits in a step, from rank 0.
    """
    border = (min(waits_s) + median_high(waits_s)) / 2
    return tuple(rank for rank, wait_s in enumerate(waits_s) if wait_s < border)
