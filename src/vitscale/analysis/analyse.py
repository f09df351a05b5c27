"""From a results folder to `StudyResult`, and `analysis.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from vitscale.analysis import learning
from vitscale.analysis.answer import answer
from vitscale.analysis.collectives import carried, idle_links, planned
from vitscale.analysis.costs import devices
from vitscale.analysis.findings import find, outliers
from vitscale.analysis.load import LaunchFigures, Run, StudyData, load
from vitscale.analysis.memory import largest_models
from vitscale.analysis.predicted import predictions
from vitscale.analysis.ranks import rank_steps
from vitscale.analysis.result import Analysis, LaunchResult, LossCurve, SkippedRun, StudyResult
from vitscale.analysis.scaling import run_results
from vitscale.analysis.utilisation import layers
from vitscale.analysis.verdict import verdicts
from vitscale.records.reader import Results
from vitscale.records.writer import write_json

ANALYSIS = "analysis.json"


def analyse(folder: Path) -> StudyResult:
    """Everything a results folder says. Reads only.

    Raises:
        ResultsError: it is no results folder, or a record in it is damaged or of a newer format.
    """
    study = load(folder)
    results = study.results
    runs, baselines = run_results(study)
    question = str(results.resolved.get("question") or "")
    analysis = Analysis(
        study=str(results.resolved.get("name") or folder.resolve().name),
        question=question,
        answer=answer(study, runs, baselines, question),
        runs=runs,
        baselines=baselines,
        findings=find(study, runs, baselines),
        verdicts=verdicts(study, runs, baselines),
    )
    return StudyResult(
        analysis=analysis,
        launches=tuple(launch for run in study.runs for launch in _launch_results(run)),
        losses=_losses(study),
        accuracies=learning.curves(study),
        skipped=_skipped(study),
        manifests=tuple(launch.manifest for launch in results.launches if launch.manifest is not None),
        resolved=results.resolved,
        labels=study.labels,
        sent_bytes={run_id: round(sum(sent.values())) for run_id, sent in planned(results.plan).items()},
        derived_step_s=_derived_step_s(results.plan),
        ranks={run.run_id: ranks for run in study.runs if (ranks := rank_steps(run))},
        links={run.run_id: links for run in study.runs if (links := idle_links(study, run)) is not None},
        collectives={run.run_id: lines for run in study.runs if (lines := carried(run))},
        layers={run.run_id: timed for run in study.runs if (timed := layers(run))},
        largest=largest_models(study),
        predictions=predictions(folder),
        devices=devices(study, runs),
    )


def write_analysis(folder: Path, result: StudyResult) -> None:
    """Write `analysis.json` into a results folder, whole or not at all.

    Raises:
        ResultsError: it cannot be written.
    """
    write_json(folder / ANALYSIS, result.analysis.model_dump(mode="json"))


def _launch_results(run: Run) -> list[LaunchResult]:
    flagged = outliers(run)
    return [_launch_result(run, one, one.record.launch in flagged) for one in run.launches]


def _launch_result(run: Run, one: LaunchFigures, outlier: bool) -> LaunchResult:
    manifest = one.record.manifest
    return LaunchResult(
        run_id=run.run_id,
        launch=one.record.launch,
        status=manifest.status if manifest else "unfinished",
        reason=manifest.reason if manifest else None,
        started=manifest.started if manifest else None,
        step_s=one.figures.step_s if one.figures else None,
        steps=one.figures.steps if one.figures else None if one.record.aggregate else 0,
        outlier=outlier,
    )


def _derived_step_s(plan: Mapping[str, Any]) -> dict[str, float]:
    told = {str(run["run_id"]): (run.get("estimate") or {}).get("step_s") for run in plan.get("runs", ())}
    return {run_id: step_s for run_id, step_s in told.items() if isinstance(step_s, float) and step_s > 0}


def _losses(study: StudyData) -> tuple[LossCurve, ...]:
    """Of each run's first launch that counts; runs without a loss (simulated ones) have no curve."""
    first = {run.run_id: _with_before(run) for run in study.runs if run.counted}
    tables = _loss_tables(study.results, [index for indices in first.values() for index in indices])
    found = []
    for run_id, indices in first.items():
        told = [tables[index] for index in indices if index in tables]
        if not told:
            continue
        # What a later launch did again counts from there.
        curve = pl.concat(told).unique("step", keep="last").sort("step").with_columns(pl.col("images").cum_sum())
        if curve["loss"].null_count() < curve.height:
            found.append(LossCurve(run_id, curve["step"].to_list(), curve["images"].to_list(), curve["loss"].to_list()))
    return tuple(found)


def _with_before(run: Run) -> list[int]:
    """The first launch that counts, after the launches that left the checkpoints it went on from."""
    launch = run.counted[0]
    manifest = launch.record.manifest
    if manifest is None or "resumed_after_step" not in manifest.notes:
        return [launch.index]
    return [one.index for one in run.launches if one.record.launch <= launch.record.launch]


def _loss_tables(results: Results, indices: list[int]) -> dict[int, pl.DataFrame]:
    """By `launch_index`: per step the images and the loss, ranks weighted by the images they took."""
    told = pl.col("loss").is_not_null()
    weighted = (pl.col("loss") * pl.col("images")).sum() / pl.col("images").filter(told).sum()
    table = (
        results.steps.lazy()
        .filter(pl.col("launch_index").is_in(indices))
        .group_by("launch_index", "step")
        .agg(
            pl.col("images").sum(),
            pl.when(told.any() & (pl.col("images").filter(told).sum() > 0)).then(weighted).alias("loss"),
        )
        .sort("launch_index", "step")
        .collect()
    )
    parts = table.partition_by("launch_index", as_dict=True, include_key=False)
    return {int(key[0]): frame for key, frame in parts.items()}


def _skipped(study: StudyData) -> tuple[SkippedRun, ...]:
    """Combinations the plan left out, and launches that ended as skipped."""
    found = [
        SkippedRun(str(one.get("label", "")), str(one.get("reason", "")))
        for one in study.results.plan.get("skipped", ())
        if isinstance(one, dict)
    ]
    for run in study.runs:
        manifests = [one.record.manifest for one in run.launches]
        reasons = [one.reason or "no reason recorded" for one in manifests if one and one.status == "skipped"]
        found += [SkippedRun(study.labels[run.run_id], reason) for reason in reasons[:1]]
    return tuple(found)
