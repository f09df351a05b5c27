"""Rows of the map of accumulation and ZeRO stage: what a step sends, takes and holds in each corner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vitscale.analysis.collectives import by_operation
from vitscale.analysis.result import RunResult, StudyResult
from vitscale.config.labels import ranks
from vitscale.report.rows import ChartData
from vitscale.report.rows.metrics import FORMS, Metric, value_of

_FOLLOWS = ("zero_stage", "grad_accum", "micro_batch", "global_batch")


Figure = Callable[[StudyResult, RunResult], float | None]
"""What a corner has of one kind; None is not known."""


def _sent(result: StudyResult, run: RunResult) -> float | None:
    """Bytes that its collectives carried."""
    lines = result.collectives.get(run.run_id, ())
    return sum(by_operation(lines).values()) if lines else None


def _sent_derived(result: StudyResult, run: RunResult) -> float | None:
    return result.sent_bytes.get(run.run_id)


def _held(_: StudyResult, run: RunResult) -> float | None:
    """Bytes of a rank by class, all together."""
    sizes = [getattr(run.memory, name).measured_bytes for name in type(run.memory).model_fields]
    return None if None in sizes else float(sum(sizes))


def _held_derived(_: StudyResult, run: RunResult) -> float | None:
    sizes = [getattr(run.memory, name).derived_bytes for name in type(run.memory).model_fields]
    return None if None in sizes else float(sum(sizes))


def _step(_: StudyResult, run: RunResult) -> float | None:
    return run.step_s.median if run.step_s else None


def _step_derived(result: StudyResult, run: RunResult) -> float | None:
    return result.derived_step_s.get(run.run_id)


def _saved(step_s: Figure) -> Figure:
    """Time that the same images take less than in the fewest micro-steps of the same stage, over that time."""

    def saved(result: StudyResult, run: RunResult) -> float | None:
        once = _fewest_micro_steps(result, run)
        now_s, once_s = step_s(result, run), step_s(result, once)
        if now_s is None or once_s is None or run.global_batch is None or once.global_batch is None:
            return None
        return 1 - now_s / run.global_batch / (once_s / once.global_batch)

    return saved


def _paid(held: Figure) -> Figure:
    """Memory of a rank beyond that with the fewest micro-steps of the same stage."""

    def paid(result: StudyResult, run: RunResult) -> float | None:
        now, once = held(result, run), held(result, _fewest_micro_steps(result, run))
        return None if now is None or once is None else now - once

    return paid


def _fewest_micro_steps(result: StudyResult, run: RunResult) -> RunResult:
    """Of the same stage and global batch; where it is the only one, of the same micro-batch."""
    of_stage = [one for one in mapped(result) if one.zero_stage == run.zero_stage]
    alike = [one for one in of_stage if one.global_batch == run.global_batch]
    if len(alike) == 1:
        alike = [one for one in of_stage if one.micro_batch == run.micro_batch]
    return min(alike, key=lambda one: one.grad_accum or 0)


METRICS = (
    Metric("time of a step", "time", "step_s"),
    Metric("time saved by accumulation: measured", "share", _saved(_step)),
    Metric("time saved by accumulation: closed form", "share", _saved(_step_derived)),
    Metric("sent per step: measured", "memory", _sent),
    Metric("sent per step: closed form", "memory", _sent_derived),
    Metric("memory of a rank: peak", "memory", "memory_peak_bytes"),
    Metric("memory of a rank: by class", "memory", _held),
    Metric("memory of a rank: closed form", "memory", _held_derived),
    Metric("memory paid for accumulation: by class", "memory", _paid(_held)),
    Metric("memory paid for accumulation: closed form", "memory", _paid(_held_derived)),
)
"""What is sent is the size of the collectives, as in the plan; the peak holds Python and its libraries too on a CPU."""


def mapped(result: StudyResult) -> list[RunResult]:
    """Valid runs that differ in stage and accumulation only: of such groups the fullest, of these the largest ranks.

    None where there are fewer than two stages and two accumulations.
    """
    groups: dict[tuple[Any, ...], list[RunResult]] = {}
    for run in result.analysis.runs:
        if run.valid and run.zero_stage is not None and run.grad_accum and run.engine == "deepspeed":
            others = tuple(item for item in run.axes.items() if item[0] not in _FOLLOWS)
            groups.setdefault((run.protocol, run.world_size, run.nodes, run.source, others), []).append(run)
    full = [runs for runs in groups.values() if all(len(values) > 1 for values in _sides(runs))]
    return max(full, key=lambda runs: (len(runs), runs[0].world_size), default=[])


def _sides(runs: Sequence[RunResult]) -> tuple[set[int | None], set[int | None]]:
    return {run.zero_stage for run in runs}, {run.grad_accum for run in runs}


def map_data(result: StudyResult) -> ChartData:
    """A row per corner and metric, with how dark it is: 0 the least of its panel, 1 the most."""
    runs = mapped(result)
    rows: list[dict[str, Any]] = []
    panels = []
    for metric in METRICS:
        values = [(run, value_of(metric, result, run)) for run in runs]
        told = [(run, value.median) for run, value in values if value is not None]
        if not told:
            continue
        panels.append(metric.title)
        least, most = min(value for _, value in told), max(value for _, value in told)
        for run, value in told:
            level = (value - least) / (most - least) if most > least else 0.0
            same = {"panel": metric.title, "stage": f"ZeRO {run.zero_stage}", "grad_accum": run.grad_accum}
            rows.append({**same, "level": level, "figure": FORMS[metric.kind](value)})
    if not rows:
        return ChartData((), ())
    first = runs[0]
    notes = [f"{first.protocol}, {ranks(first.world_size, None)}."]
    return ChartData(tuple(rows), ("",), tuple(panels), notes=tuple(notes))
