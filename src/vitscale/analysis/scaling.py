"""Throughput, speed-up and efficiency of each run, with their intervals, and what may be read from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from vitscale.analysis import exposed, learning, memory, overhead
from vitscale.analysis.costs import costs, price_per_s
from vitscale.analysis.load import LaunchFigures, Run, StudyData
from vitscale.analysis.missing import missing
from vitscale.analysis.mixed import with_dealt
from vitscale.analysis.result import Interval, RunResult
from vitscale.analysis.split import overlapped, shares
from vitscale.analysis.start_up import start_ups
from vitscale.analysis.utilisation import utilisation
from vitscale.analysis.waterfall import with_waterfalls
from vitscale.records.schema import Parity
from vitscale.statistics import Estimate, interval, ratio_interval

FEWEST_STEPS = 5
"""Steady steps below which the median of a launch says too little."""


def run_results(study: StudyData) -> tuple[tuple[RunResult, ...], dict[str, str]]:
    """A result per run, and series -> run_id of its baseline (a series without one is left out)."""
    named = named_baseline(study.results.resolved)
    chosen = {name: baseline(runs, named) for name, runs in study.by_series.items()}
    baselines = {name: run for name, run in chosen.items() if run is not None}
    target, price = learning.target_of(study.results.resolved), price_per_s(study.results.resolved)
    derived = memory.derived(study.results.plan)
    begun = start_ups(one.manifest for one in study.results.launches if one.manifest is not None)
    results = tuple(
        _result(study, run, baselines.get(run.series), target, price, derived.get(run.run_id, {})).model_copy(
            update={"start_up": begun.get(run.run_id)}
        )
        for run in study.runs
    )
    named_ids = {name: run.run_id for name, run in baselines.items()}
    return with_dealt(with_waterfalls(results, named_ids), study), named_ids


def named_baseline(resolved: Mapping[str, Any]) -> int | None:
    """The world size that `measure.baseline` names, or None."""
    measure = resolved.get("measure")
    value = measure.get("baseline") if isinstance(measure, Mapping) else None
    return value if isinstance(value, int) else None


def baseline(runs: Sequence[Run], named: int | None) -> Run | None:
    """The valid run of the world size that is named, else of the smallest one; of several the one on fewest nodes."""
    valid = [run for run in runs if not run_problems(run) and named in (None, run.facts.world_size)]
    return min(valid, key=lambda run: (run.facts.world_size, run.facts.nodes or 0), default=None)


def speedup(run: Run, base: Run) -> Estimate:
    """`images_per_s / images_per_s(base)` with its interval; exactly 1 for the baseline itself.

    Both need a launch that counts.
    """
    if run.run_id == base.run_id:
        return Estimate(1.0, 1.0, 1.0)
    if "imported" in (run.source, base.source):
        return ratio_interval(run.images_per_s, base.images_per_s)._replace(low=None, high=None)
    assert run.facts.global_batch is not None
    assert base.facts.global_batch is not None
    return scaled(ratio_interval(base.step_s, run.step_s), run.facts.global_batch / base.facts.global_batch)


def scaled(estimate: Estimate, factor: float) -> Estimate:
    """An estimate times a positive constant."""
    return Estimate(*(None if value is None else value * factor for value in estimate))  # type: ignore[arg-type]


def run_problems(run: Run) -> list[str]:
    """Why a run's figures are not a measurement of scaling, by itself."""
    if not run.launches:
        return ["not started"]
    if not run.counted:
        return ["no launch with status ok"]
    problems = []
    fewest = min(_steps(one) for one in run.counted)
    if fewest < FEWEST_STEPS:
        problems.append(f"a launch has {fewest} steady steps, fewer than {FEWEST_STEPS}")
    if run.source == "imported" and not run.images_per_s:
        problems.append("its source does not tell how many images a step or an epoch takes, and in what time")
    if any(one.record.altered for one in run.counted):
        problems.append("records are not what was measured, by the manifest's sha256")
    proof = parity_of(run)
    if proof is not None and not proof.ok:
        problems.append(f"not comparable: differs from plain torch from step {proof.first_step} on")
    if run.facts.oversubscribed:
        problems.append("more ranks than cores")
    if len(run.device_names) > 1:
        problems.append(f"mixed devices: {', '.join(run.device_names)}")
    ranks = min((one.ranks or 0 for one in run.figures), default=0)
    if run.source == "measured" and ranks < run.facts.world_size:
        problems.append(f"records of {ranks} of {run.facts.world_size} ranks")
    return problems


def parity_of(run: Run) -> Parity | None:
    """Parity of the run's engine with plain torch: of the launches that counted, the one that failed, else any."""
    manifests = [one.record.manifest for one in run.counted if one.record.manifest is not None]
    return min((one.parity for one in manifests if one.parity is not None), key=lambda one: one.ok, default=None)


def _steps(one: LaunchFigures) -> float:
    """Steady steps; figures of a whole launch stand for as many as it had."""
    if one.figures is None:
        return math.inf if one.record.aggregate is not None else 0
    return math.inf if one.figures.steps is None else one.figures.steps


_OF_FACTS = (
    "protocol", "model", "dataset", "optimizer", "world_size", "nodes", "engine", "zero_stage", "micro_batch",
    "grad_accum", "global_batch", "precision",
)  # fmt: skip


def _result(
    study: StudyData,
    run: Run,
    base: Run | None,
    target: float | None,
    price: float | None,
    derived: Mapping[str, int],
) -> RunResult:
    facts = run.facts
    problems = run_problems(run)
    if base is not None and run.images_per_s and run.device_names != base.device_names and len(run.device_names) == 1:
        problems.append(f"mixed devices in the series: {run.device_names[0]}, baseline {', '.join(base.device_names)}")
    step_s = interval(run.step_s) if run.step_s else None
    gain = speedup(run, base) if base is not None and run.images_per_s else None
    rate = _throughput(run, step_s)
    images_per_s, epoch_s = _shown(rate, run), _shown(_inverse(rate, facts.images_per_epoch), run)
    mfu, mfu_reason = utilisation(run, rate)
    way = learning.reached(run, target)
    # With another amount of training images (`weak`) it would not be the batch alone that differs.
    alike = base is not None and base.facts.images_per_epoch == facts.images_per_epoch
    base_images = learning.reached(base, target).images if base is not None and alike else None
    accuracies = [one.record.test_accuracy for one in run.counted if one.record.test_accuracy is not None]
    return RunResult(
        run_id=run.run_id,
        series=run.series,
        **{name: getattr(facts, name) for name in _OF_FACTS},
        device=", ".join(run.device_names) or None,
        axes=run.axes,
        source=run.source,
        launches=max(len(run.step_s), len(run.images_per_s)),
        step_s=_shown(step_s, run),
        images_per_s=images_per_s,
        speedup=_shown(gain, run),
        efficiency=_shown(scaled(gain, base.facts.world_size / facts.world_size), run) if gain and base else None,
        epoch_s=epoch_s,
        shares=shares(run.figures),
        overlapped_share=overlapped(run.figures),
        silent_share=exposed.silent_share(run),
        profiled_share=exposed.profiled_share(run),
        idle_link_share=exposed.idle_link_share(study, run),
        overhead_share=overhead.overhead_share(run),
        mfu=mfu,
        mfu_reason=mfu_reason,
        memory_peak_bytes=_largest(run.memory_peaks_bytes),
        memory=memory.memory(run, derived),
        costs=costs(run, epoch_s, way.seconds, price),
        missing=missing(run),
        test_accuracy=median(accuracies) if accuracies else None,
        time_to_accuracy_s=way.seconds,
        epochs_to_accuracy=way.epochs,
        images_to_accuracy=way.images,
        algorithmic_efficiency=learning.algorithmic_efficiency(way.images, base_images),
        parity=parity_of(run),
        valid=not problems,
        invalid_reasons=tuple(problems),
    )


def _throughput(run: Run, step_s: Estimate | None) -> Estimate | None:
    """Images per second from seconds per step (the ends of the interval change places), or as imported."""
    if run.source == "imported":
        return Estimate(median(run.images_per_s)) if run.images_per_s else None
    return _inverse(step_s, run.facts.global_batch)


def _inverse(estimate: Estimate | None, images: int | None) -> Estimate | None:
    """`images` over the estimate: the ends of its interval change places."""
    if estimate is None or images is None:
        return None
    low, high = (None if end is None else images / end for end in (estimate.high, estimate.low))
    return Estimate(images / estimate.median, low, high)


def _shown(estimate: Estimate | None, run: Run) -> Interval | None:
    """Imported figures have no interval: whether several are replications of one another, their sources do not tell."""
    if estimate is None:
        return None
    if run.source == "imported":
        return Interval(median=estimate.median)
    return Interval(median=estimate.median, low=estimate.low, high=estimate.high)


def _largest(values: Sequence[float]) -> int | None:
    return int(max(values)) if values else None
