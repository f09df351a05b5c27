"""Findings about what the ranks tell each other, and about batches that grow with their number.

What communication costs in measured runs is in their verdict (`verdict.py`), and not told again here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from vitscale.analysis import text
from vitscale.analysis.load import Run, StudyData
from vitscale.analysis.result import Finding, RunResult, Shares
from vitscale.config.labels import ranks
from vitscale.config.runspec import RunSpec
from vitscale.units import percent

COMMUNICATION_SHARE = 0.05
"""`communication_share`: communication, with waiting where it is not told apart, is this much of the step. Below it a
perfect overlap would gain less than most measurements can tell."""

COMMUNICATION_GRAVE = 0.25
"""`communication_share`: from here on it is a warning, not a note: the step would be a quarter shorter without it."""

Results = Mapping[str, RunResult]


def find(study: StudyData, results: Results) -> Iterator[Finding]:
    """Every finding about communication and growing batches."""
    yield from _communication_share(study, results)
    yield from _no_overlap(study, results)
    yield from _batch_grows(study)
    yield from _protocol_unknown(study)


def communication(shares: Shares) -> float | None:
    """Share of the step that is communication nothing hides, with waiting where a host timer held both; or None."""
    told = [one for one in (shares.comm_exposed, shares.comm_and_wait) if one is not None]
    return max(told) if told else None


def _heaviest(runs: Sequence[Run], results: Results) -> tuple[Run, float] | None:
    """The run of a series with the largest share of communication, where it is worth telling."""
    shares = [
        (run, communication(results[run.run_id].shares))
        for run in runs
        if run.facts.world_size > 1 and run.source != "measured"
    ]
    told = [(run, share) for run, share in shares if share is not None and share >= COMMUNICATION_SHARE]
    return max(told, key=lambda pair: pair[1], default=None)


def _communication_share(study: StudyData, results: Results) -> Iterator[Finding]:
    for name, runs in study.by_series.items():
        heaviest = _heaviest(runs, results)
        if heaviest is None:
            continue
        run, share = heaviest
        both = results[run.run_id].shares.comm_and_wait is not None
        what = "all-reduce and waiting for the slowest rank in it take" if both else "communication takes"
        many = ranks(run.facts.world_size, run.facts.device_kind)
        yield Finding(
            kind="communication_share",
            severity="warning" if share >= COMMUNICATION_GRAVE else "note",
            evidence=f"{study.labels[name]}: {what} {percent(share)} of the step with {many}.",
            hint="more work between two reductions (grad_accum, micro_batch), a faster link, or a shorter wait",
            runs=(run.run_id,),
        )


def _no_overlap(study: StudyData, results: Results) -> Iterator[Finding]:
    """DeepSpeed's stage 0 reduces gradients in one go after the last backward pass (`allreduce_gradients`)."""
    heaviest = [
        one
        for runs in study.by_series.values()
        if (one := _heaviest([run for run in runs if _stage_0(run)], results)) is not None
    ]
    if heaviest:
        run, share = max(heaviest, key=lambda pair: pair[1])
        labels = [study.labels[one.series] for one, _ in heaviest]
        own = any(one.facts.engine == "deepspeed" for one, _ in heaviest)
        beside = "engine.overlap_reduce=true sends in buckets during the backward pass; " if own else ""
        yield Finding(
            kind="no_overlap",
            severity="warning" if share >= COMMUNICATION_GRAVE else "note",
            evidence="DeepSpeed with ZeRO stage 0 does not overlap its all-reduce with the backward pass: it starts "
            f"when that is done, so all of it adds to the step, up to {percent(share)} ({study.labels[run.run_id]}); "
            f"{text.count(len(heaviest), 'series')}: {text.names(labels)}.",
            hint=f"{beside}zero_stage=1 or 2 with DeepSpeed's overlap_comm=true overlaps on CUDA; "
            "grad_accum reduces less often",
            runs=tuple(one.run_id for one, _ in heaviest),
        )


def _stage_0(run: Run) -> bool:
    """With DeepSpeed's own all-reduce; engines without stages have none."""
    knobs = run.spec.knobs if isinstance(run.spec, RunSpec) else None
    return run.facts.zero_stage == 0 and not (knobs and knobs.overlap_reduce)


def _batch_grows(study: StudyData) -> Iterator[Finding]:
    """One finding of the series that are called what they are, one of those that their source calls otherwise."""
    groups: dict[str, list[list[Run]]] = {}
    for runs in study.by_series.values():
        is_, called = runs[0].facts.protocol, runs[0].facts.told_protocol
        wrongly = called if called and is_ and called != is_ else ""
        if (wrongly or is_ == "strong_fixed_micro") and _batches(runs)[0] < _batches(runs)[-1]:
            groups.setdefault(wrongly, []).append(runs)
    for called, found in groups.items():
        told = [f"{study.labels[runs[0].series]} from {_span(runs)}" for runs in found]
        wrong = f", which their source calls `{called}`" if called else ""
        imported = any(runs[0].source == "imported" for runs in found)
        yield Finding(
            kind="global_batch_grows",
            severity="warning" if called or imported else "note",
            evidence=f"The global batch grows with the world size in {text.count(len(found), 'series')}{wrong}: "
            f"{text.names(told)}. Larger batches take fewer updates per epoch: the speed-up is of an epoch, not of the "
            "same training.",
            hint="protocol `strong` keeps the global batch; otherwise compare the time to an accuracy",
            runs=tuple(run.run_id for runs in found for run in runs),
        )


def _batches(runs: Sequence[Run]) -> list[tuple[int, int]]:
    """(global batch, world size), by world size."""
    told = [(run.facts.world_size, run.facts.global_batch or 0) for run in runs]
    return [(batch, size) for size, batch in sorted(told)]


def _span(runs: Sequence[Run]) -> str:
    (least, few), (most, many) = _batches(runs)[0], _batches(runs)[-1]
    return f"{least:,} at world size {few} to {most:,} at {many} ({runs[0].facts.protocol})"


def _protocol_unknown(study: StudyData) -> Iterator[Finding]:
    unknown = {name: runs for name, runs in study.by_series.items() if runs[0].facts.protocol is None}
    single = [study.labels[name] for name, runs in unknown.items() if len({one.facts.world_size for one in runs}) == 1]
    several = [study.labels[name] for name in unknown if study.labels[name] not in single]
    if several:
        yield Finding(
            kind="protocol_unknown",
            severity="warning",
            evidence=f"{text.count(len(several), 'series')} whose protocol nothing tells ({text.names(several)}): "
            "neither the global batch nor the micro-batch with the images per epoch, in all or per rank, is told and "
            "equal.",
            hint="a table can tell them: `vitscale import table`",
            runs=tuple(run.run_id for runs in unknown.values() for run in runs if study.labels[run.series] in several),
        )
    if single:
        yield Finding(
            kind="protocol_unknown",
            severity="note",
            evidence=f"{text.count(len(single), 'series')} of a single world size ({text.names(single)}): there is no "
            "protocol to tell.",
            runs=tuple(run.run_id for runs in unknown.values() for run in runs if study.labels[run.series] in single),
        )
