"""Findings about the records themselves: what failed, what is not finished, what is not measured, what was altered."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from vitscale.analysis import text
from vitscale.analysis.load import LaunchFigures, Run, StudyData
from vitscale.analysis.result import Finding

SKIPPED_SHARE = 0.1
"""`skipped_steps`: more than the search for the first loss scale takes in a run of ordinary length."""

_ENDED = {"oom": "ran out of memory", "timeout": "ran into a time limit", "failed": "failed"}


def find(study: StudyData) -> Iterator[Finding]:
    """Every finding about the records."""
    yield from _run_failed(study)
    yield from _unfinished(study)
    yield from _other_sources(study)
    yield from _damaged(study)
    yield from _negative_time(study)
    yield from _skipped(study)


def _run_failed(study: StudyData) -> Iterator[Finding]:
    for run in study.runs:
        for status, words in _ENDED.items():
            ended = [one for one in run.launches if _status(one) == status]
            if not ended:
                continue
            reasons = dict.fromkeys(_reason(one) for one in ended)
            lost = not run.counted
            rest = "no launch of it counts" if lost else f"{text.count(len(run.counted), 'other launch')} count"
            yield Finding(
                kind="run_failed",
                severity=("warning" if status == "oom" else "error") if lost else "note",
                evidence=f"{study.labels[run.run_id]}: {text.count(len(ended), 'launch')} {words} "
                f"({text.names(list(reasons))}); {rest}.",
                hint=_hint(status) if lost else None,
                runs=(run.run_id,),
            )


def _unfinished(study: StudyData) -> Iterator[Finding]:
    cut = [run for run in study.runs if any(_status(one) in ("unfinished", "killed") for one in run.launches)]
    absent = [run for run in study.runs if not run.launches]
    parts = []
    if cut:
        launches = sum(_status(one) in ("unfinished", "killed") for run in cut for one in run.launches)
        parts.append(f"{text.count(launches, 'launch')} cut off ({text.names(_labels(study, cut))})")
    if absent:
        parts.append(f"{text.count(len(absent), 'run')} not started ({text.names(_labels(study, absent))})")
    if parts:
        missing = absent or any(not run.counted for run in cut)
        yield Finding(
            kind="unfinished",
            severity="warning" if missing else "note",
            evidence=f"{'; '.join(parts)}.",
            hint="the same `vitscale run` command runs only what is missing",
            runs=tuple(run.run_id for run in (*cut, *absent)),
        )


def _other_sources(study: StudyData) -> Iterator[Finding]:
    for source in ("simulated", "imported"):
        runs = [run for run in study.runs if run.source == source and run.launches]
        if runs:
            yield Finding(
                kind=source,
                severity="warning",
                evidence=f"{len(runs)} of {len(study.runs)} runs are {source}, not measured: "
                f"{text.names(_labels(study, runs))}.",
                runs=tuple(run.run_id for run in runs),
            )
    for run in study.runs:
        left_out = [one for one in run.launches if one.record.ok and one not in run.counted]
        if left_out:
            yield Finding(
                kind="mixed_sources",
                severity="warning",
                evidence=f"{study.labels[run.run_id]}: {text.count(len(left_out), 'launch')} not {run.source} left out "
                "of the figures.",
                hint="simulate and import into a results folder of their own",
                runs=(run.run_id,),
            )


def _damaged(study: StudyData) -> Iterator[Finding]:
    """Only launches with a manifest: an unfinished one is expected to be torn."""
    for run in study.runs:
        finished = [one.record for one in run.launches if one.record.manifest is not None]
        torn = [f"launch{one.launch}/{name}" for one in finished for name in one.torn]
        altered = [f"launch{one.launch}/{name}" for one in finished for name in one.altered]
        if torn:
            yield Finding(
                kind="torn_records",
                severity="warning",
                evidence=f"{study.labels[run.run_id]}: the last line is cut off and not counted in {text.names(torn)}.",
                hint="copy the launch folder again from where it was measured",
                runs=(run.run_id,),
            )
        if altered:
            yield Finding(
                kind="altered_records",
                severity="error",
                evidence=f"{study.labels[run.run_id]}: not what was measured, by the manifest's sha256: "
                f"{text.names(altered)}.",
                hint="copy the launch folder again from where it was measured, or measure it again",
                runs=(run.run_id,),
            )


def _negative_time(study: StudyData) -> Iterator[Finding]:
    """Parts that some step has less than 0 of."""
    for run in study.runs:
        names = sorted({f"{name}_s" for one in run.figures for name in one.negative})
        if names:
            many = text.count(sum(bool(one.negative) for one in run.figures), "launch")
            yield Finding(
                kind="negative_time",
                severity="warning",
                evidence=f"{study.labels[run.run_id]}: {', '.join(names)} below 0 in steps of {many}; null there, and "
                "in no share or cause.",
                hint="a clock went backwards, or records were altered: measure the run again",
                runs=(run.run_id,),
            )


def _skipped(study: StudyData) -> Iterator[Finding]:
    lines = study.results.steps
    if not (lines["window"] == "skipped").any():
        return
    steps_of = lines.group_by("launch_index").agg(
        pl.col("step").n_unique(), skipped=pl.col("step").filter(pl.col("window") == "skipped").n_unique()
    )
    told = {index: (steps, skipped) for index, steps, skipped in steps_of.iter_rows()}
    for run in study.runs:
        counts = [told[one.index] for one in run.counted if one.index in told]
        steps, skipped = sum(one for one, _ in counts), sum(one for _, one in counts)
        if skipped:
            much = skipped > SKIPPED_SHARE * steps
            yield Finding(
                kind="skipped_steps",
                severity="warning" if much else "note",
                evidence=f"{study.labels[run.run_id]}: gradients overflowed fp16's loss scale in {skipped:,} of "
                f"{steps:,} steps, whose updates were left out; these steps are in no time.",
                hint="precision=bf16 needs no loss scale" if much else None,
                runs=(run.run_id,),
            )


def _status(one: LaunchFigures) -> str:
    return one.record.manifest.status if one.record.manifest else "unfinished"


def _reason(one: LaunchFigures) -> str:
    return (one.record.manifest and one.record.manifest.reason) or "no reason recorded"


def _hint(status: str) -> str:
    if status == "oom":
        return "a smaller micro_batch, a higher zero_stage or precision=bf16 needs less memory"
    return "stderr.log in its round's folder says more; the same `vitscale run` command tries it again"


def _labels(study: StudyData, runs: list[Run]) -> list[str]:
    return [study.labels[run.run_id] for run in runs]
