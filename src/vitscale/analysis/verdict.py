"""Why each run is not faster: its causes, what each costs, and what to change. The dearest first.

A cause is named if it is more than noise: `NOTICEABLE` of the step, with an interval over the launches whose lower end
is above `NEGLIGIBLE` of it (`case.py`). So a clean run names none. Only measured runs have a verdict: others bring
no parts that could be told apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vitscale.analysis import causes, missing, settings, text
from vitscale.analysis.case import NOTICEABLE, Best, Case, Found, best_of
from vitscale.analysis.cause import Cause, Verdict
from vitscale.analysis.collectives import idle_links
from vitscale.analysis.device_findings import OTHER_LOAD_CORES
from vitscale.analysis.interval import Interval
from vitscale.analysis.load import Run, StudyData
from vitscale.analysis.remedies import REMEDIES, remedy
from vitscale.analysis.result import Analysis, RunResult
from vitscale.analysis.waterfall import work_ratio
from vitscale.config.runspec import RunSpec
from vitscale.units import number, percent, seconds

UNTOLD = "communication and waiting are not timed apart here, and are inside backward and optimizer"

_COMPUTING = {
    "model", "engine", "zero_stage", "fsdp", "knobs", "precision", "device", "deepspeed", "threads_per_rank",
    "sequence_parallel", "tensor_parallel", "micro_batch", "grad_accum",
}  # fmt: skip


def verdicts(study: StudyData, results: Sequence[RunResult], baselines: Mapping[str, str]) -> tuple[Verdict, ...]:
    """A verdict per measured run with figures, in the order of the runs."""
    cases = _cases(study, {result.run_id: result for result in results}, baselines)
    return tuple(_verdict(cases[result.run_id]) for result in results if result.run_id in cases)


def _cases(study: StudyData, results: Mapping[str, RunResult], baselines: Mapping[str, str]) -> dict[str, Case]:
    best = best_of(study.runs)
    alone = {run.run_id: case for run in study.runs if (case := _case(run, results[run.run_id], best)) is not None}
    found = {}
    for run_id, case in alone.items():
        base = alone.get(baselines.get(case.run.series, run_id))
        ratio = None if base is None else work_ratio(case.result, base.result)
        known = replace(case, idle=idle_links(study, case.run))
        if base is not None and ratio is not None and base.run.run_id != run_id:
            known = replace(known, base=base, ratio=ratio, twin=_twin(case, base, alone.values()))
        found[run_id] = known
    return found


def _twin(case: Case, base: Case, cases: Iterable[Case]) -> Case | None:
    """A run that computes the same on a rank, on as few ranks as the baseline: of another protocol."""
    if case.spec.micro_batch == base.spec.micro_batch:
        return None
    alike = (one for one in cases if one.ranks == base.ranks and _computing(one.spec) == _computing(case.spec))
    return next(alike, None)


def _computing(spec: RunSpec) -> Mapping[str, Any]:
    """What decides how long a rank computes, other ranks aside."""
    return spec.model_dump(include=_COMPUTING) | {"data": spec.data.name}


def _case(run: Run, result: RunResult, best: Best) -> Case | None:
    if run.source != "measured" or not isinstance(run.spec, RunSpec) or not run.figures or result.step_s is None:
        return None
    return Case(run, run.spec, result, result.step_s.median, best, figures=tuple(run.figures))


def _verdict(case: Case) -> Verdict:
    found = [one for rule in (*causes.RULES, *settings.RULES) for one in rule(case)]
    named = [one for one in found if case.stands(one.seconds)]
    kinds = {one.kind for one in named}
    # A setting is a part of a cause: without that it explains nothing.
    told = [_cause(case, one) for one in named if one.within is None or one.within in kinds]
    # The sort is stable: of equals the whole comes before its part.
    told.sort(key=lambda cause: -cause.seconds.median)
    told = [_with_setting(cause, told) for cause in told]
    text = f"{_told(case, told)}{_doubtful(case, found, told)}{_around(case)}."
    return Verdict(run_id=case.run.run_id, text=text, causes=tuple(told))


def _cause(case: Case, found: Found) -> Cause:
    cost = found.seconds
    hint, override = remedy(case, found)
    return Cause(
        kind=found.kind,
        detail=found.detail,
        rank=found.rank,
        node=found.node,
        within=found.within,
        seconds=Interval(median=cost.median, low=cost.low, high=cost.high),
        share=cost.median / case.step_s,
        gain=case.gain(cost),
        evidence=f"{found.evidence[0].upper()}{found.evidence[1:]}.",
        hint=hint,
        override=override,
        runs=(case.run.run_id, *([found.against.run.run_id] if found.against else [])),
    )


def _with_setting(cause: Cause, told: Sequence[Cause]) -> Cause:
    """A cause that is mostly a setting's is best met by changing that: hint and override are the dearest one's."""
    half_s = cause.seconds.median / 2
    settings_of = (one for one in told if one.within == cause.kind and one.override and one.seconds.median >= half_s)
    setting = next(settings_of, None)
    return cause if setting is None else cause.model_copy(update={"hint": setting.hint, "override": setting.override})


def of_largest(analysis: Analysis, most: int | None = None) -> list[tuple[RunResult, Verdict]]:
    """The verdict of each series at its largest world size, on the most hosts, of a valid run where there is one.

    Args:
        analysis: the study's.
        most: return no more than these, the ones whose dearest cause takes the largest share of its step.
    """
    told = {verdict.run_id: verdict for verdict in analysis.verdicts}
    chosen: dict[str, RunResult] = {}
    for run in analysis.runs:
        held = chosen.get(run.series)
        if run.run_id in told and (held is None or _extent(run) > _extent(held)):
            chosen[run.series] = run
    by_share = sorted(chosen.values(), key=lambda run: -_top_share(told[run.run_id]))
    kept = {run.run_id for run in by_share[:most]}
    return [(run, told[run.run_id]) for run in chosen.values() if run.run_id in kept]


def _extent(run: RunResult) -> tuple[bool, int, int]:
    return run.valid, run.world_size, run.nodes or 0


def _top_share(verdict: Verdict) -> float:
    return verdict.causes[0].share if verdict.causes else 0.0


def _told(case: Case, told: Sequence[Cause]) -> str:
    """The dearest cause."""
    if not told:
        return f"Nothing found: no cause takes {percent(NOTICEABLE, 0)} of the step beyond noise"
    top = told[0]
    further = sum(cause.within is None for cause in told[1:])  # a setting is a part of one that is counted
    more = f", and {text.count(further, 'further cause')}" if further else ""
    return (
        f"{named(top)}: {seconds(top.seconds.median)} of a step of {seconds(case.step_s)} "
        f"({percent(top.share)}); without it {text.ratio(top.gain)} the throughput{more}"
    )


def _doubtful(case: Case, found: Sequence[Found], told: Sequence[Cause]) -> str:
    """What would be dearer than any cause that is named, were it more than noise."""
    least_s = max([NOTICEABLE * case.step_s, *(cause.seconds.median for cause in told)])
    larger = [one for one in found if one.within is None and one.seconds.median > least_s]
    if not larger:
        return ""
    most = max(larger, key=lambda one: one.seconds.median)
    launches = text.count(len(case.figures), "launch")
    name = REMEDIES[most.kind].name
    cost = seconds(most.seconds.median)
    return f"; {name[0].lower()}{name[1:]} may cost {cost}, which {launches} cannot tell from noise"


def _around(case: Case) -> str:
    """What could not be told apart, and that others were at work: then what is found is of a shared machine."""
    reason = missing.reason_of(case.run, missing.APART)
    untold = "" if case.communication_told else f"; {UNTOLD}{f' ({reason})' if reason else ''}"
    others = case.others_cores
    if others is None or others <= OTHER_LOAD_CORES:
        return untold
    return f"{untold}; {number(others)} cores were at work for others"


def named(cause: Cause) -> str:
    """A cause in words, with what of it in brackets: `A late rank (rank 1, in forward)`."""
    parts = [] if cause.rank is None else [f"rank {cause.rank}"]
    parts += [] if cause.detail is None else [f"in {cause.detail}" if cause.kind == "straggler" else cause.detail]
    return REMEDIES[cause.kind].name + (f" ({', '.join(parts)})" if parts else "")
