"""The verdict in one sentence, for a reader who sees only this line.

It states what was measured at the largest valid world size of each series, with intervals, and what keeps it from
saying more. `Yes` or `No` comes first only where it can be meant: a question whether more processes help, asked of a
study whose series differ in nothing but the protocol. Runs whose throughput intervals overlap are never ranked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from vitscale.analysis import text
from vitscale.analysis.findings import neighbours
from vitscale.analysis.load import Run, StudyData
from vitscale.analysis.result import Interval, RunResult
from vitscale.analysis.scaling import speedup
from vitscale.config.labels import ranks
from vitscale.statistics import differ
from vitscale.units import percent, size

Outcome = Literal["faster", "slower", "same", "unknown"]

_YES_NO = re.compile(r"\s*(does|do|did|is|are|can|could|will|would|has|have)\b", re.IGNORECASE)
_HELPS = re.compile(r"\b(help|faster|quicker|speed|scal|pay|worth|gain|benefit|improve)", re.IGNORECASE)
_NEGATED = re.compile(r"\b(not|no|stop|without|slower|less|worse|fail|lose)\b|n't\b", re.IGNORECASE)
_WHICH = re.compile(r"\s*(which|what)\b.*\b(fast|quick|slow|best)", re.IGNORECASE)
_MEMORY = re.compile(r"\b(memory|ram|fits?|gib|gb)\b", re.IGNORECASE)
_SPELT_OUT = 3


def answer(study: StudyData, results: Sequence[RunResult], baselines: Mapping[str, str], question: str) -> str:
    """One sentence about every series, honest about intervals, failures and simulated records."""
    valid = [result for result in results if result.valid]
    if not valid:
        return f"Not answered: {_why_nothing(results)}."
    scaled = [run for run in _largest(study, valid) if run.series in baselines and run.run_id != baselines[run.series]]
    by_id = {result.run_id: result for result in results}
    body = _scaling(study, by_id, baselines, scaled, question) if scaled else _levels(study, valid)
    if scaled and _WHICH.match(question):
        body = _side_by_side(study, by_id, scaled) + body
    missing = len(results) - len(valid)
    gap = f"; {missing} of {text.count(len(results), 'run')} without a valid result" if missing else ""
    learnt = _accuracies(study, valid) if scaled or len(valid) > _SPELT_OUT else ""
    kept = _memories(study, [by_id[run.run_id] for run in scaled] or valid) if _MEMORY.search(question) else ""
    return f"{_source(valid)}{_like_for_like(results)}{body}{kept}{_spread(study, by_id)}{learnt}{gap}."


def outcome(result: RunResult, reference: RunResult) -> Outcome:
    """What the throughput intervals of two runs tell. A simulated figure has no noise, so its value alone does."""
    new, old = result.images_per_s, reference.images_per_s
    if new is None or old is None:
        return "unknown"
    if result.source == reference.source == "simulated":
        if new.median == old.median:
            return "same"
    elif new.low is None or old.low is None:
        return "unknown"
    elif not differ(new, old):
        return "same"
    return "faster" if new.median > old.median else "slower"


def _why_nothing(results: Sequence[RunResult]) -> str:
    if not results:
        return "there is no run"
    reasons: dict[str, int] = {}
    for result in results:
        for reason in result.invalid_reasons[:1]:
            reasons[reason] = reasons.get(reason, 0) + 1
    told = ", ".join(f"{reason} ({count} of {len(results)})" for reason, count in reasons.items())
    return f"no run has a valid result: {told}"


def _source(valid: Sequence[RunResult]) -> str:
    others = sorted({result.source for result in valid} - {"measured"})
    if not others:
        return ""
    some = "" if all(result.source != "measured" for result in valid) else "partly "
    return f"{some}{' and '.join(others)}, not measured: ".capitalize()


def _largest(study: StudyData, valid: Sequence[RunResult]) -> list[Run]:
    """Of each series the valid run of the largest world size (of several, the one on fewest nodes)."""
    known = {result.run_id for result in valid}
    largest: dict[str, Run] = {}
    for run in study.runs:
        held = largest.get(run.series)
        if run.run_id in known and (held is None or run.facts.world_size > held.facts.world_size):
            largest[run.series] = run
    return list(largest.values())


def _scaling(
    study: StudyData, results: Mapping[str, RunResult], baselines: Mapping[str, str], runs: list[Run], question: str
) -> str:
    outcomes = [outcome(results[run.run_id], results[baselines[run.series]]) for run in runs]
    if len(runs) > _SPELT_OUT:
        return _summary(study, [results[run.run_id] for run in runs], outcomes)
    before = {larger.run_id: results[smaller.run_id] for smaller, larger, _ in neighbours(study, results)}
    clauses = [
        _clause(study, results[run.run_id], results[baselines[run.series]], run, before.get(run.run_id)) for run in runs
    ]
    plain = len(clauses) == len({run.facts.protocol for run in study.runs})
    body = "; ".join(clauses)
    word = _word(outcomes) if plain and _about_scaling(question) else ""
    return f"{word}{body}" if word else f"{body[0].upper()}{body[1:]}"


def _clause(study: StudyData, result: RunResult, base: RunResult, run: Run, before: RunResult | None) -> str:
    many, few = ranks(result.world_size, run.facts.device_kind), str(base.world_size)
    gain = _gain(result)
    about = study.labels[run.series]
    efficiency = f"efficiency {text.share(result.efficiency)}" if result.efficiency else ""
    match outcome(result, base):
        case "faster":
            said = f"{many} train {text.ratio(gain)} as fast as {few} ({about}, {efficiency})"
        case "slower":
            said = f"{many} train slower than {few}, at {text.ratio(gain)} its speed ({about}, {efficiency})"
        case "same":
            said = f"no difference detected between {many} and {few} ({about}, {text.ratio(gain)})"
        case _:
            doubt = "with no interval" if result.source == "imported" else "too few launches to tell it from noise"
            told = f"{about}, {efficiency}" if result.source == "imported" else about
            said = f"{many} trained {text.ratio(gain)} as fast as {few} ({told}), {doubt}"
    return said + _plateau(result, before, base)


def _plateau(result: RunResult, before: RunResult | None, base: RunResult) -> str:
    """What the last step up in world size gave, where it is not plainly a gain."""
    if before is None or before.run_id == base.run_id:
        return ""
    last = outcome(result, before)
    fewer = before.world_size
    if last == "same":
        return f", with no difference detected from {fewer}"
    return f", slower than {fewer}" if last == "slower" else ""


def _summary(study: StudyData, results: list[RunResult], outcomes: list[Outcome]) -> str:
    """Many series: how many gain, and the range of their efficiencies."""
    told = [result for result in results if result.efficiency is not None]
    told.sort(key=lambda result: result.efficiency.median if result.efficiency else 0.0)
    lowest, highest = (f"{percent(_median(one))} ({study.labels[one.series]})" for one in (told[0], told[-1]))
    imported = all(result.source == "imported" for result in results)
    words: dict[Outcome, str] = {
        "faster": "faster",
        "slower": "slower",
        "same": "no difference detected",
        "unknown": "no interval to tell" if imported else "too few launches to tell",
    }
    counts = ", ".join(f"{outcomes.count(key)} {said}" for key, said in words.items() if key in outcomes)
    return (
        f"Of {len(results)} series, each at its largest world size against its smallest: {counts}; "
        f"efficiency from {lowest} to {highest}"
    )


def _spread(study: StudyData, results: Mapping[str, RunResult]) -> str:
    """What it costs to spread the same ranks over more nodes, at the largest world size of each series that tells."""
    clauses = []
    for name, runs in study.by_series.items():
        by_size: dict[int, list[Run]] = {}
        for run in runs:
            if results[run.run_id].valid and run.facts.nodes is not None:
                by_size.setdefault(run.facts.world_size, []).append(run)
        told = [world_size for world_size, placed in by_size.items() if len({run.facts.nodes for run in placed}) > 1]
        if told:
            placed = sorted(by_size[max(told)], key=lambda run: run.facts.nodes or 0)
            few, many = placed[0], placed[-1]
            gain = text.ratio(speedup(many, few))
            found = outcome(results[many.run_id], results[few.run_id])
            where = f"on {many.facts.nodes} nodes as on {few.facts.nodes}"
            imported = results[many.run_id].source == "imported"
            unknown = ", with no interval" if imported else ", too few launches to tell it from noise"
            doubt = {"same": ", no difference detected", "unknown": unknown}.get(found, "")
            many_ranks = ranks(max(told), many.facts.device_kind)
            clauses.append(f"{many_ranks} train {gain} as fast {where} ({study.labels[name]}{doubt})")
    return f"; {'; '.join(clauses)}" if clauses else ""


def _levels(study: StudyData, valid: list[RunResult]) -> str:
    """No series has two world sizes to compare: throughputs, and whether the highest can be told from the rest."""
    ordered = sorted(valid, key=lambda result: -(result.images_per_s.median if result.images_per_s else 0.0))
    top = ordered[0]
    told = "; ".join(f"{study.labels[one.run_id]} {_level(one)}" for one in ordered[:_SPELT_OUT])
    more = f"; and {len(ordered) - _SPELT_OUT} more" if len(ordered) > _SPELT_OUT else ""
    if len(ordered) == 1:
        return f"Nothing to compare with: {told}"
    assert top.images_per_s is not None
    level = [one for one in ordered[1:] if one.images_per_s and not differ(top.images_per_s, one.images_per_s)]
    if top.images_per_s.low is None:
        verdict = "too few launches to tell a difference from noise"
    elif level:
        verdict = f"no difference detected between {study.labels[top.run_id]} and {text.names(_labels(study, level))}"
    else:
        verdict = f"fastest is {study.labels[top.run_id]}"
    return f"{verdict[0].upper()}{verdict[1:]}: {told}{more}"


def _like_for_like(results: Sequence[RunResult]) -> str:
    """Whether ways to distribute training that are compared train the same, first of all."""
    proven = [result for result in results if result.parity is not None]
    if len(proven) < 2:
        return ""
    alike = sum(result.parity is not None and result.parity.ok for result in proven)
    unproven = sum(result.parity is None and result.step_s is not None for result in results)
    others = f"; not held against it: {text.count(unproven, 'run')}" if unproven else ""
    return f"Like for like: {alike} of {text.count(len(proven), 'run')} train as plain torch does{others}. "


def _side_by_side(study: StudyData, results: Mapping[str, RunResult], runs: Sequence[Run]) -> str:
    """For a question that asks which: the series against each other, where they end at one world size."""
    sizes = {(run.facts.protocol, run.facts.world_size, run.facts.nodes) for run in runs}
    if len(runs) < 2 or len(sizes) > 1:
        return ""
    return f"{_levels(study, [results[run.run_id] for run in runs])}. "


def _memories(study: StudyData, results: Sequence[RunResult]) -> str:
    """For a question about memory: the range of what a rank's tensors take, or the rank where they were not counted."""
    counted = all(one.memory.measured for one in results)
    what = "a rank's tensors take" if counted else "peak memory of a rank"
    peaks = [one.memory.total_bytes if counted else one.memory_peak_bytes for one in results]
    told = sorted(
        (peak, study.labels[one.run_id]) for peak, one in zip(peaks, results, strict=True) if peak is not None
    )
    if len(told) < 2:
        return ""
    (low, least), (high, most) = told[0], told[-1]
    if low == high:
        return f"; {what} {size(low)} in each of {len(told)} runs"
    return f"; {what} from {size(low)} ({least}) to {size(high)} ({most})"


def _level(result: RunResult) -> str:
    assert result.images_per_s is not None
    accuracy = "" if result.test_accuracy is None else f", test accuracy {percent(result.test_accuracy)}"
    return f"{text.rate(result.images_per_s)}{accuracy}"


def _accuracies(study: StudyData, valid: Sequence[RunResult]) -> str:
    """The range of test accuracies, where several runs were evaluated."""
    told = sorted(
        (result.test_accuracy, study.labels[result.run_id]) for result in valid if result.test_accuracy is not None
    )
    if len(told) < 2:
        return ""
    (low, worst), (high, best) = told[0], told[-1]
    if low == high:
        return f"; test accuracy {percent(low)} in each of {len(told)} runs"
    return f"; test accuracy from {percent(low)} ({worst}) to {percent(high)} ({best})"


def _labels(study: StudyData, results: list[RunResult]) -> list[str]:
    return [study.labels[result.run_id] for result in results]


def _about_scaling(question: str) -> bool:
    return bool(_YES_NO.match(question) and _HELPS.search(question) and not _NEGATED.search(question))


def _word(outcomes: list[Outcome]) -> str:
    if "unknown" in outcomes:
        return "Not settled: "
    if set(outcomes) == {"faster"}:
        return "Yes: "
    if "faster" in outcomes:
        return "In part: "
    return "No: " if set(outcomes) == {"slower"} else "Not detectably: "


def _gain(result: RunResult) -> Interval:
    assert result.speedup is not None
    return result.speedup


def _median(result: RunResult) -> float:
    assert result.efficiency is not None
    return result.efficiency.median
