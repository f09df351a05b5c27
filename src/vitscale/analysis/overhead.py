"""What measuring cost a run, by the manifests of its own launches: the report prints its own overhead.

Of a launch it is the dearest rank's, since the others wait for that one, and of a run the median over the launches.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from vitscale.analysis.load import LaunchFigures, Run, StudyData
from vitscale.analysis.result import Finding
from vitscale.records.schema import Overhead
from vitscale.units import number, percent, seconds

ALLOWED = 0.01
"""`overhead`: above this share of the step."""


def overhead_share(run: Run) -> float | None:
    """Share of the step that went into its records; None where no launch timed that."""
    dearest = _dearest(run)
    return median(share for share, _ in dearest) if dearest else None


def find(study: StudyData) -> Iterator[Finding]:
    """Runs whose figures hold more of the measuring than is allowed."""
    for run in study.runs:
        share = overhead_share(run)
        if share is None or share <= ALLOWED:
            continue
        _, one = max(_dearest(run), key=lambda of_launch: of_launch[0])
        kinds = ((one.synchronous, one.synchronous_s), (one.asynchronous, one.asynchronous_s))
        timed = [f"{number(count)} timed collectives of {seconds(each_s)}, " for count, each_s in kinds if count]
        yield Finding(
            kind="overhead",
            severity="note",
            evidence=f"{study.labels[run.run_id]}: measuring took {percent(share)} of the step: "
            f"{''.join(timed)}{number(one.marks)} marks of {seconds(one.mark_s)}, a heartbeat of "
            f"{seconds(one.heartbeat_s)}, samples of the devices {percent(one.sampling_share, 2)} of the time.",
            hint="samples further apart (measure.sample_s)"
            if one.sampling_share > share / 2
            else "longer steps hide it: more images per rank, fewer and larger collectives",
            runs=(run.run_id,),
        )


def _dearest(run: Run) -> list[tuple[float, Overhead]]:
    """Of each launch the rank that spent most on its records, with the share of the step that this is."""
    return [max(told, key=lambda one: one[0]) for launch in run.counted if (told := _of_ranks(launch))]


def _of_ranks(one: LaunchFigures) -> list[tuple[float, Overhead]]:
    manifest, figures = one.record.manifest, one.figures
    if manifest is None or figures is None:
        return []
    found = [device.overhead for device in manifest.devices if device.overhead is not None]
    return [(overhead.step_s / figures.step_s + overhead.sampling_share, overhead) for overhead in found]
