"""Figures for programs: CSV in base units and full precision, and LaTeX."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from vitscale.analysis.cause import Cause, Waterfall
from vitscale.analysis.result import Bytes, Costs, Interval, MemoryResult, RunResult, StudyResult
from vitscale.analysis.split import MEASURED
from vitscale.records.evaluations import Scored
from vitscale.report.escape import csv_text, latex
from vitscale.report.rows import label
from vitscale.report.rows.split import PARTS
from vitscale.report.tables import interval_text
from vitscale.units import number, percent, seconds

_INTERVALS = (
    "step_s",
    "images_per_s",
    "speedup",
    "efficiency",
    "epoch_s",
    "time_to_accuracy_s",
    "mfu",
    "silent_share",
    "profiled_share",
)
_FIELDS = (
    "run_id", "series", "protocol", "model", "dataset", "optimizer", "world_size", "nodes", "engine", "zero_stage",
    "micro_batch", "grad_accum", "global_batch", "precision", "device", "source", "launches", "memory_peak_bytes",
    "overlapped_share", "idle_link_share", "mfu_reason",
    "test_accuracy", "epochs_to_accuracy", "images_to_accuracy", "algorithmic_efficiency", "valid",
)  # fmt: skip

_CAUSE = ("kind", "detail", "rank", "node", "within", "share", "evidence", "hint", "override")


def sheets(result: StudyResult) -> dict[str, str]:
    """File name -> CSV, in base units and full precision."""
    runs = result.analysis.runs
    header = ["label", *_FIELDS]
    header += [*_columns(_INTERVALS), "axes", "invalid_reasons"]
    scaling = [[label(result, run.run_id), *_scaling_cells(run)] for run in runs]
    shares = [[run.run_id, run.world_size, *(getattr(run.shares, part) for part in PARTS)] for run in runs]
    launches = [
        [one.run_id, one.launch, one.status, one.reason, one.started, one.step_s, one.steps, one.outlier]
        for one in result.launches
    ]
    losses = [
        [curve.run_id, *line]
        for curve in result.losses
        for line in zip(curve.step, curve.images, curve.loss, strict=True)
    ]
    findings = [
        [one.severity, one.kind, one.evidence, one.hint, " ".join(one.runs)] for one in result.analysis.findings
    ]
    evaluations = [[curve.run_id, *one] for curve in result.accuracies for one in curve.evaluations]
    costs = [[run.run_id, run.world_size, *_ends(run.costs, Costs.model_fields)] for run in runs]
    memory = [
        [run.run_id, run.world_size, name, *(getattr(run.memory, name).model_dump().values())]
        for run in runs
        for name in MemoryResult.model_fields
    ]
    falls = [[run.run_id, run.world_size, *run.waterfall.model_dump().values()] for run in runs if run.waterfall]
    causes = [[verdict.run_id, *_cause_cells(one)] for verdict in result.analysis.verdicts for one in verdict.causes]
    rank_parts = (*MEASURED, "late")
    ranks = [
        [run_id, one.rank, one.node, *(one.seconds.get(name) for name in rank_parts)]
        for run_id, told in result.ranks.items()
        for one in told
    ]
    launch_header = ["run_id", "launch", "status", "reason", "started", "step_s", "steps", "outlier"]
    return {
        "scaling.csv": csv_text(header, scaling),
        "shares.csv": csv_text(["run_id", "world_size", *(f"{part}_share" for part in PARTS)], shares),
        "waterfall.csv": csv_text(["run_id", "world_size", *Waterfall.model_fields], falls),
        "causes.csv": csv_text(["run_id", *_CAUSE, *_columns(("seconds", "gain")), "runs"], causes),
        "ranks.csv": csv_text(["run_id", "rank", "node", *(f"{name}_s" for name in rank_parts)], ranks),
        "launches.csv": csv_text(launch_header, launches),
        "losses.csv": csv_text(["run_id", "step", "images", "loss"], losses),
        "evaluations.csv": csv_text(["run_id", *Scored._fields], evaluations),
        "costs.csv": csv_text(["run_id", "world_size", *_columns(Costs.model_fields)], costs),
        "memory.csv": csv_text(["run_id", "world_size", "class", *Bytes.model_fields], memory),
        "findings.csv": csv_text(["severity", "kind", "evidence", "hint", "runs"], findings),
        "skipped.csv": csv_text(["label", "reason"], [[one.label, one.reason] for one in result.skipped]),
    }


def scaling_latex(result: StudyResult) -> str:
    """A booktabs tabular of every run, for \\input."""
    lines = [
        r"% Needs \usepackage{booktabs}. Median of the launches and 95 % interval; a dagger marks runs that are not",
        "% valid as a measurement of scaling.",
        r"\begin{tabular}{lrrrrr}",
        r"\toprule",
        r"Run & $N$ & Step & Images/s & Speed-up & Efficiency \\",
        r"\midrule",
    ]
    for run in result.analysis.runs:
        name = latex(label(result, run.run_id)) + ("" if run.valid else r"\textsuperscript{\textdagger}")
        forms = ((run.step_s, seconds), (run.images_per_s, number), (run.speedup, number), (run.efficiency, percent))
        cells = [latex(interval_text(value, form)) for value, form in forms]
        lines.append(" & ".join([name, str(run.world_size), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""]).replace("µ", r"\textmu{}")


def _scaling_cells(run: RunResult) -> list[Any]:
    axes = json.dumps(run.axes, sort_keys=True, default=str) if run.axes else None
    values = [getattr(run, name) for name in _FIELDS]
    return [*values, *_ends(run, _INTERVALS), axes, "; ".join(run.invalid_reasons) or None]


def _cause_cells(cause: Cause) -> list[Any]:
    ends = (cause.seconds, cause.gain)
    values = [end for one in ends for end in (one.median, one.low, one.high)]
    return [*(getattr(cause, name) for name in _CAUSE), *values, " ".join(cause.runs)]


def _columns(names: Iterable[str]) -> list[str]:
    return [f"{name}_{end}" for name in names for end in ("median", "low", "high")]


def _ends(figures: RunResult | Costs, names: Iterable[str]) -> list[float | None]:
    values: list[float | None] = []
    for name in names:
        value: Interval | None = getattr(figures, name)
        values += [value.median, value.low, value.high] if value else [None, None, None]
    return values
