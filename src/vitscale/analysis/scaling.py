"""Throughput, speed-up and efficiency of each run, with their intervals, and what may be read from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from vitscale.analysis.load import Run, StudyData
from vitscale.analysis.result import Interval, RunResult
from vitscale.analysis.split import shares
from vitscale.statistics import Estimate, interval, ratio_interval

FEWEST_STEPS = 5
"""Steady steps below which the median of a launch says too little."""


def run_results(study: StudyData) -> tuple[tuple[RunResult, ...], dict[str, str]]:
    """A result per run, and series -> run_id of its baseline (a series without one is left out)."""
    named = named_baseline(study.results.resolved)
    chosen = {name: baseline(runs, named) for name, runs in study.by_series.items()}
    baselines = {name: run for name, run in chosen.items() if run is not None}
    results = tuple(_result(run, baselines.get(run.series)) for run in study.runs)
    return results, {name: run.run_id for name, run in baselines.items()}


def named_baseline(resolved: Mapping[str, Any]) -> int | None:
    """The world size that `measure.baseline` names, or None."""
    measure = resolved.get("measure")
    value = measure.get("baseline") if isinstance(measure, Mapping) else None
    return value if isinstance(value, int) else None


def baseline(runs: Sequence[Run], named: int | None) -> Run | None:
    """The valid run of the world size that is named, else of the smallest one; of several the one on fewest nodes."""
    valid = [run for run in runs if not run_problems(run) and named in (None, run.spec.world_size)]
    return min(valid, key=lambda run: (run.spec.world_size, run.spec.nodes), default=None)


def speedup(run: Run, base: Run) -> Estimate:
    """`images_per_s / images_per_s(base)` with its interval; exactly 1 for the baseline itself.

    Both need a launch that counts.
    """
    if run.run_id == base.run_id:
        return Estimate(1.0, 1.0, 1.0)
    return scaled(ratio_interval(base.step_s, run.step_s), run.spec.global_batch / base.spec.global_batch)


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
    fewest = min(one.figures.steps if one.figures else 0 for one in run.counted)
    if fewest < FEWEST_STEPS:
        problems.append(f"a launch has {fewest} steady steps, fewer than {FEWEST_STEPS}")
    if run.spec.oversubscribed:
        problems.append("more ranks than cores")
    if len(run.device_names) > 1:
        problems.append(f"mixed devices: {', '.join(run.device_names)}")
    ranks = min((one.ranks for one in run.figures), default=0)
    if run.source == "measured" and ranks < run.spec.world_size:
        problems.append(f"records of {ranks} of {run.spec.world_size} ranks")
    return problems


def _result(run: Run, base: Run | None) -> RunResult:
    spec = run.spec
    problems = run_problems(run)
    if base is not None and run.step_s and run.device_names != base.device_names and len(run.device_names) == 1:
        problems.append(f"mixed devices in the series: {run.device_names[0]}, baseline {', '.join(base.device_names)}")
    step_s = interval(run.step_s) if run.step_s else None
    gain = speedup(run, base) if base is not None and run.step_s else None
    peaks = [device.memory_peak_bytes for device in run.devices if device.memory_peak_bytes is not None]
    accuracies = [one.record.test_accuracy for one in run.counted if one.record.test_accuracy is not None]
    return RunResult(
        run_id=run.run_id,
        series=run.series,
        protocol=spec.protocol,
        model=spec.model.name,
        dataset=spec.data.name,
        optimizer=spec.optimizer.name,
        world_size=spec.world_size,
        nodes=spec.nodes,
        engine=spec.engine,
        zero_stage=spec.zero_stage,
        micro_batch=spec.micro_batch,
        grad_accum=spec.grad_accum,
        global_batch=spec.global_batch,
        precision=spec.precision,
        device=", ".join(run.device_names) or None,
        axes=run.axes,
        source=run.source,
        launches=len(run.step_s),
        step_s=_shown(step_s),
        images_per_s=_shown(_throughput(step_s, spec.global_batch)),
        speedup=_shown(gain),
        efficiency=_shown(scaled(gain, base.spec.world_size / spec.world_size)) if gain and base else None,
        shares=shares(run.figures),
        memory_peak_bytes=max(peaks, default=None),
        test_accuracy=median(accuracies) if accuracies else None,
        valid=not problems,
        invalid_reasons=tuple(problems),
    )


def _throughput(step_s: Estimate | None, global_batch: int) -> Estimate | None:
    """Images per second from seconds per step: the ends of the interval change places."""
    if step_s is None:
        return None
    low, high = (None if end is None else global_batch / end for end in (step_s.high, step_s.low))
    return Estimate(global_batch / step_s.median, low, high)


def _shown(estimate: Estimate | None) -> Interval | None:
    return None if estimate is None else Interval(median=estimate.median, low=estimate.low, high=estimate.high)
