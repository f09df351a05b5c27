"""Why each run is not faster: its causes, what each costs, and what to change. The dearest first.

A cause is named if it is more than noise: `NOTICEABLE` of the step, with an interval over the launches whose lower end
is above `NEGLIGIBLE` of it (`case.py`). So a clean run names none. Only measured runs have a verdict: others bring
no parts that could be told apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from vitscale.analysis import causes, settings, text
from vitscale.analysis.case import NOTICEABLE, Case, Found, best_of
from vitscale.analysis.cause import Cause, Verdict
from vitscale.analysis.collectives import idle_links
from vitscale.analysis.interval import Interval
from vitscale.analysis.load import Run, StudyData
from vitscale.analysis.remedies import REMEDIES, remedy
from vitscale.analysis.result import Analysis, RunResult
from vitscale.analysis.waterfall import work_ratio
from vitscale.config.runspec import RunSpec
from vitscale.units import percent, seconds

UNTOLD = "communication and waiting are not timed apart here, and are inside backward and optimizer"


def verdicts(study: StudyData, results: Sequence[RunResult], baselines: Mapping[str, str]) -> tuple[Verdict, ...]:
    """A verdict per measured run with figures, in the order of the runs."""
    cases = _cases(study, {result.run_id: result for result in results}, baselines)
    return tuple(_verdict(cases[result.run_id]) for result in results if result.run_id in cases)


def _cases(study: StudyData, results: Mapping[str, RunResult], baselines: Mapping[str, str]) -> dict[str, Case]:
    best = best_of(study.runs)
    alone = {run.run_id: case for run in study.runs if (case := _case(run, results[run.run_id])) is not None}
    found = {}
    for run_id, case in alone.items():
        base = alone.get(baselines.get(case.run.series, run_id))
        ratio = None if base is None else work_ratio(case.result, base.result)
        compared = base is not None and ratio is not None and base.run.run_id != run_id
        found[run_id] = replace(
            case, best=best, idle=idle_links(study, case.run), base=base if compared else None, ratio=ratio or 1.0
        )
    return found


def _case(run: Run, result: RunResult) -> Case | None:
    if run.source != "measured" or not isinstance(run.spec, RunSpec) or not run.figures or result.step_s is None:
        return None
    return Case(run, run.spec, result, result.step_s.median, figures=tuple(run.figures))


def _verdict(case: Case) -> Verdict:
    rules = (*causes.RULES, *settings.RULES)
    named = [found for rule in rules for found in rule(case) if case.stands(found.seconds)]
    kinds = {found.kind for found in named}
    # A setting is a part of a cause: without that it explains nothing.
    told = [_cause(case, found) for found in named if found.within is None or found.within in kinds]
    # The sort is stable: of equals the whole comes before its part.
    told.sort(key=lambda cause: -cause.seconds.median)
    told = [_with_setting(cause, told) for cause in told]
    return Verdict(run_id=case.run.run_id, text=_text(case, told), causes=tuple(told))


def _cause(case: Case, found: Found) -> Cause:
    cost = found.seconds
    hint, override = remedy(case, found)
    compared = case.base is not None and bool(found.reference_s)
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
        runs=(case.run.run_id, case.base.run.run_id) if compared and case.base else (case.run.run_id,),
    )


def _with_setting(cause: Cause, told: Sequence[Cause]) -> Cause:
    """A cause that a setting makes dearer is best met by changing that: hint and override are the dearest one's."""
    setting = next((one for one in told if one.within == cause.kind and one.override), None)
    return cause if setting is None else cause.model_copy(update={"hint": setting.hint, "override": setting.override})


def of_largest(analysis: Analysis, most: int | None = None) -> list[tuple[RunResult, Verdict]]:
    """The verdict of each series at its largest world size, of a valid run where there is one.

    Args:
        analysis: the study's.
        most: return no more than these, the ones whose dearest cause takes the largest share of its step.
    """
    told = {verdict.run_id: verdict for verdict in analysis.verdicts}
    chosen: dict[str, RunResult] = {}
    for run in analysis.runs:
        held = chosen.get(run.series)
        rank = (run.valid, run.world_size)
        if run.run_id in told and (held is None or rank > (held.valid, held.world_size)):
            chosen[run.series] = run
    by_share = sorted(chosen.values(), key=lambda run: -_top_share(told[run.run_id]))
    kept = {run.run_id for run in by_share[:most]}
    return [(run, told[run.run_id]) for run in chosen.values() if run.run_id in kept]


def _top_share(verdict: Verdict) -> float:
    return verdict.causes[0].share if verdict.causes else 0.0


def _text(case: Case, told: Sequence[Cause]) -> str:
    untold = "" if case.communication_told else f"; {UNTOLD}"
    if not told:
        return f"Nothing found: no cause takes {percent(NOTICEABLE, 0)} of the step beyond noise{untold}."
    top = told[0]
    more = f", and {text.count(len(told) - 1, 'further cause')}" if len(told) > 1 else ""
    return (
        f"{REMEDIES[top.kind].name}{_where(top)}: {seconds(top.seconds.median)} of a step of {seconds(case.step_s)} "
        f"({percent(top.share)}); without it {text.ratio(top.gain)} the throughput{more}{untold}."
    )


def _where(cause: Cause) -> str:
    """What of it, in brackets."""
    parts = [] if cause.rank is None else [f"rank {cause.rank}"]
    parts += [] if cause.detail is None else [f"in {cause.detail}" if cause.kind == "straggler" else cause.detail]
    return f" ({', '.join(parts)})" if parts else ""
