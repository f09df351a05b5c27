"""What was learnt: accuracy curves, the way to a target accuracy, and what a larger batch costs in images.

Time to accuracy is that of the first evaluation at or above the target, as MLPerf Training counts it: evaluations
further apart make it coarser, never better. Its seconds are training time (steps, without evaluations and checkpoints).

Against a series' baseline the loss of efficiency has two parts:

    time to accuracy = images to accuracy / images per second
    efficiency of the whole = system efficiency * algorithmic efficiency

where the system efficiency is `RunResult.efficiency`, and the algorithmic one is the images that the baseline needed
over those that this run needed: below 1 where larger batches need more epochs (Shallue et al., JMLR 20, 2019).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from vitscale.analysis import text
from vitscale.analysis.load import Run, StudyData
from vitscale.analysis.result import AccuracyCurve, Finding, Interval, RunResult
from vitscale.records.evaluations import Scored
from vitscale.statistics import interval
from vitscale.units import number, percent

ALGORITHMIC_LOSS = 0.9
"""`more_images_needed`: the baseline needs less than this of the images that the run needs."""


@dataclass(frozen=True)
class Reached:
    """The way of a run to the target accuracy, over its launches; all None where one of them did not get there."""

    seconds: Interval | None = None
    """Training time."""
    images: float | None = None
    """Training images, median of the launches."""
    epochs: float | None = None
    """Passes over the training images, median of the launches."""


def target_of(resolved: Mapping[str, Any]) -> float | None:
    """`train.target_accuracy` of the study, or None."""
    train = resolved.get("train")
    value = train.get("target_accuracy") if isinstance(train, Mapping) else None
    return value if isinstance(value, float) else None


def reached(run: Run, target: float | None) -> Reached:
    """When a run first had the target accuracy."""
    if target is None or not run.counted:
        return Reached()
    first = [_first(one.record.evaluations, target) for one in run.counted]
    found = [one for one in first if one is not None]
    if len(found) < len(first):
        return Reached()
    seconds = [one.seconds for one in found if one.seconds]
    time = interval(seconds) if len(seconds) == len(found) else None
    return Reached(
        seconds=Interval(median=time.median, low=time.low, high=time.high) if time else None,
        images=_median([one.images for one in found]),
        epochs=_median([one.epoch for one in found]),
    )


def algorithmic_efficiency(images: float | None, base_images: float | None) -> float | None:
    """Images that the baseline needed over those that the run needed."""
    return base_images / images if images and base_images else None


def curves(study: StudyData) -> tuple[AccuracyCurve, ...]:
    """Of each run's first launch that counts and was evaluated."""
    found = []
    for run in study.runs:
        evaluated = [one.record.evaluations for one in run.counted if one.record.evaluations]
        if evaluated:
            found.append(AccuracyCurve(run.run_id, evaluated[0]))
    return tuple(found)


def find(study: StudyData, results: Mapping[str, RunResult], baselines: Mapping[str, str]) -> Iterator[Finding]:
    """Targets that were not reached, and batches that need more images."""
    target = target_of(study.results.resolved)
    if target is None:
        return
    yield from _not_reached(study, results, target)
    yield from _more_images(study, results, baselines, target)


def _not_reached(study: StudyData, results: Mapping[str, RunResult], target: float) -> Iterator[Finding]:
    told_of = {run.run_id: _accuracies(run) for run in study.runs}
    short = [run for run in study.runs if told_of[run.run_id] and results[run.run_id].images_to_accuracy is None]
    if short:
        told = [f"{study.labels[run.run_id]} {percent(max(told_of[run.run_id]))} at best" for run in short]
        yield Finding(
            kind="target_not_reached",
            severity="warning",
            evidence=f"{text.count(len(short), 'run')} of {len(study.runs)} did not reach the target accuracy of "
            f"{percent(target)} in every launch: {text.names(told)}.",
            hint="train.epochs gives more time, train.target_accuracy asks for less",
            runs=tuple(run.run_id for run in short),
        )


def _more_images(
    study: StudyData, results: Mapping[str, RunResult], baselines: Mapping[str, str], target: float
) -> Iterator[Finding]:
    for run in study.runs:
        result = results[run.run_id]
        base = results.get(baselines.get(run.series, ""))
        share = result.algorithmic_efficiency
        if base is None or share is None or share >= ALGORITHMIC_LOSS:
            continue
        system = f"system efficiency {text.share(result.efficiency)}, " if result.efficiency else ""
        yield Finding(
            kind="more_images_needed",
            severity="warning",
            evidence=f"{study.labels[run.run_id]}: global batch {result.global_batch:,} needs {number(1 / share)} "
            f"times the images of global batch {base.global_batch:,} for an accuracy of {percent(target)} "
            f"({system}algorithmic efficiency {percent(share)}; one seed).",
            hint="a learning rate that follows the batch (optimizer.lr_policy), longer warm-up, or LAMB",
            runs=(run.run_id, base.run_id),
        )


def _first(evaluations: Sequence[Scored], target: float) -> Scored | None:
    return next((one for one in evaluations if one.test_accuracy is not None and one.test_accuracy >= target), None)


def _median(values: Sequence[float | None]) -> float | None:
    told = [value for value in values if value is not None]
    return median(told) if told and len(told) == len(values) else None


def _accuracies(run: Run) -> list[float]:
    return [
        score.test_accuracy
        for one in run.counted
        for score in one.record.evaluations
        if score.test_accuracy is not None
    ]
