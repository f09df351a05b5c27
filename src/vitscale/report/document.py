"""A study as the report tells it: plain text in the order it is read, the same for the page and for Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vitscale.analysis import text
from vitscale.analysis.result import StudyResult
from vitscale.report import tables
from vitscale.report.escape import cleaned
from vitscale.report.figures import Drawing
from vitscale.report.method import method, resolved_text
from vitscale.report.tables import Table

_SOURCES = {
    "simulated": "Simulated, not measured: times come from the cost model, no step was run.",
    "imported": "Imported, not measured by vitscale: the figures come from other people's logs.",
}


@dataclass(frozen=True)
class Message:
    """A finding."""

    severity: str
    kind: str
    evidence: str
    hint: str


@dataclass(frozen=True)
class Part:
    """A figure's place: heading, how to read it, its table."""

    name: str
    title: str
    reading: str
    alternative: str
    """What the figure shows, for who does not see it."""
    drawn: bool
    notes: tuple[str, ...]
    table: Table


@dataclass(frozen=True)
class Document:
    """Everything in the report but the drawings."""

    study: str
    question: str
    answer: str
    banners: tuple[str, ...]
    alerts: tuple[Message, ...]
    """Errors and warnings: shown near the top."""
    parts: tuple[Part, ...]
    findings: tuple[Message, ...]
    method: tuple[tuple[str, str], ...]
    batch: Table
    exceptions: tuple[Table, ...]
    """What is not valid, and what was skipped."""
    launches: Table
    resolved: str


def document(result: StudyResult, drawings: Sequence[Drawing]) -> Document:
    """The report's text, with nothing in it that a terminal or a browser could act on but markup, which is escaped
    by whoever writes a format."""
    analysis = result.analysis
    messages = tuple(Message(one.severity, one.kind, one.evidence, one.hint or "") for one in analysis.findings)
    by_name = {one.name: one for one in drawings}
    made = Document(
        study=analysis.study,
        question=analysis.question,
        answer=analysis.answer,
        banners=_banners(result),
        alerts=tuple(one for one in messages if one.severity != "note"),
        parts=tuple(_part(result, name, by_name.get(name)) for name in _PARTS),
        findings=messages,
        method=method(result),
        batch=tables.batch_table(result),
        exceptions=tuple(table for table in (tables.invalid_table(result), tables.skipped_table(result)) if table.rows),
        launches=tables.launch_table(result),
        resolved=resolved_text(result.resolved),
    )
    return cleaned(made)


_PARTS: dict[str, tuple[str, str, str, Callable[[StudyResult], Table]]] = {
    "throughput": (
        "Throughput",
        "Images per second against world size. A point is the median of a run's launches, its bar the 95 % interval.",
        "no run has a throughput",
        tables.throughput_table,
    ),
    "speedup": (
        "Speed-up",
        "Throughput over the baseline's. Both axes are logarithmic, so ideal scaling is the straight dashed line.",
        "no series has a baseline",
        lambda result: tables.gain_table(result, "speedup"),
    ),
    "efficiency": (
        "Efficiency",
        "Speed-up over what the added ranks would give at best; 100 % is ideal.",
        "no series has a baseline",
        lambda result: tables.gain_table(result, "efficiency"),
    ),
    "split": (
        "Where a step's time goes",
        "Share of each part in the step of the slowest rank, median of the launches.",
        "no run has a split of its step",
        tables.split_table,
    ),
    "loss": (
        "Training loss",
        "Mean over the ranks, of the first launch of each run that counts, warm-up included.",
        "no run has a loss",
        tables.loss_table,
    ),
}


def _part(result: StudyResult, name: str, drawing: Drawing | None) -> Part:
    title, reading, absent, table_of = _PARTS[name]
    table = table_of(result)
    if drawing is None:
        return Part(name, title, f"Not drawn: {absent}.", "", False, (), table)
    about = f"{title}, {text.count(len(table.rows), 'run')}. The table below has every figure."
    return Part(name, title, reading, about, True, drawing.notes, table)


def _banners(result: StudyResult) -> tuple[str, ...]:
    runs = result.analysis.runs
    found = []
    for source, words in _SOURCES.items():
        of_source = [run for run in runs if run.source == source]
        if of_source:
            some = "" if len(of_source) == len(runs) else f"{len(of_source)} of {len(runs)} runs. "
            found.append(some + words)
    return tuple(found)
