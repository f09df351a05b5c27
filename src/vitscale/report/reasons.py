"""Why each series is not faster, and what to change first, second and third: what a report says before any figure."""

from __future__ import annotations

from dataclasses import dataclass

from vitscale.analysis import text
from vitscale.analysis.cause import Cause
from vitscale.analysis.result import StudyResult
from vitscale.analysis.verdict import named, of_largest
from vitscale.units import percent, seconds

MOST_REASONS = 4
"""Series whose verdict stands above the figures."""

MOST_CHANGES = 3
"""Causes of each that are told there; the table of causes has all."""


@dataclass(frozen=True)
class Change:
    """A cause and what to do about it."""

    cause: str
    """Its name, and what it costs of a step."""
    evidence: str
    hint: str
    override: str
    """Study keys to paste; empty where none helps."""


@dataclass(frozen=True)
class Reason:
    """A verdict."""

    run: str
    text: str
    changes: tuple[Change, ...]
    """The dearest first; none where nothing was found."""


def reasons(result: StudyResult) -> tuple[Reason, ...]:
    """Of the series that lose most; the table of causes has all."""
    return tuple(
        Reason(result.labels.get(run.run_id, run.run_id), verdict.text, changes(verdict.causes))
        for run, verdict in of_largest(result.analysis, MOST_REASONS)
    )


def changes(causes: tuple[Cause, ...]) -> tuple[Change, ...]:
    """What to change, in order. Settings are left out: where one is most of a cause, the cause has its key."""
    whole = [cause for cause in causes if cause.within is None]
    return tuple(
        Change(
            f"{named(cause)}: {seconds(cause.seconds.median)}, {percent(cause.share, 0)} of the step",
            cause.evidence,
            cause.hint,
            cause.override or "",
        )
        for cause in whole[:MOST_CHANGES]
    )


def more_reasons(result: StudyResult) -> str:
    """How many series more there are; empty where all are told."""
    more = len(of_largest(result.analysis)) - MOST_REASONS
    told = text.count(more, "further series")
    return f"These lose most; {told} are in the table of causes." if more > 0 else ""
