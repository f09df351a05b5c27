"""Why figures of a run are null: as its ranks told it, or for what their records hold."""

from __future__ import annotations

from collections.abc import Sequence

from vitscale.analysis.load import Run
from vitscale.analysis.split import TOGETHER

_TOLD = ("memory_peak_bytes", "resumed_after_step", "clock_offset_s")
"""Notes about figures that are there."""

NEGATIVE = "some step has less than 0 of it or of what is told with it, which no clock measures"
"""Why a part is null that the step lines have."""

APART = ("comm_s", "comm_exposed_s", "comm_overlapped_s", "wait_s", "late_s")
"""Step fields that rest on when ranks arrived."""


def missing(run: Run) -> dict[str, str]:
    """Field of a record -> why it is null in a launch that counts, the first that says so; empty of other sources."""
    if run.source != "measured":
        return {}
    manifests = [one.record.manifest for one in run.counted if one.record.manifest is not None]
    told = [(name, reason) for one in reversed(manifests) for name, reason in one.notes.items() if name not in _TOLD]
    below = [name for one in run.figures for name in one.negative]
    negative = {f"{one}_s": NEGATIVE for name in below for one in TOGETHER.get(name, (name,))}
    return {**{name: reason for name, reason in told if isinstance(reason, str)}, **negative}


def reason_of(run: Run, fields: Sequence[str]) -> str | None:
    """Why the first of these that is null is so; None where none is, or nothing says why."""
    told = missing(run)
    return next((told[name] for name in fields if name in told), None)
