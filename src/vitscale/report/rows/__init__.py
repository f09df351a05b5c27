"""What each figure draws, as rows, and in words what it leaves out so that it stays readable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vitscale.analysis.result import RunResult, StudyResult

MOST_KEYS = 8
"""Series told apart by colour and shape; the eye tells no more."""

PROTOCOLS: dict[str | None, str] = {
    "strong": "strong: same global batch",
    "strong_fixed_micro": "strong_fixed_micro: same micro-batch",
    "weak": "weak: same work per device",
    None: "protocol not known",
}
"""Heading of a panel; protocols never share one where scaling is read from it."""


@dataclass(frozen=True)
class ChartData:
    """Rows of one figure."""

    rows: tuple[dict[str, Any], ...]
    keys: tuple[str, ...]
    """What colour and shape tell apart, in order."""
    panels: tuple[str, ...] = ()
    """Headings of the panels in order; none where the figure has one only."""
    others: str = ""
    """The key of what is drawn in grey, where there is more than `MOST_KEYS`."""
    notes: tuple[str, ...] = ()
    """What is not drawn, or drawn differently, in words."""


def label(result: StudyResult, identity: str) -> str:
    """Short label of a run or series."""
    return result.labels.get(identity, identity)


def panel(run: RunResult) -> str:
    """Heading of the run's panel."""
    return PROTOCOLS[run.protocol]


def panel_key(result: StudyResult, run: RunResult, *, of_run: bool = False) -> str:
    """Label without the protocol, which is the panel's: what is equal in two panels has one colour."""
    return label(result, run.run_id if of_run else run.series).removeprefix(f"{run.protocol}, ")


def protocol_panels(rows: tuple[dict[str, Any], ...]) -> tuple[str, ...]:
    """Headings of the protocols that occur."""
    found = {row["panel"] for row in rows}
    return tuple(heading for heading in PROTOCOLS.values() if heading in found)
