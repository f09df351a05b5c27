"""What the report does not tell of its runs, and why; on what exposed communication rests, and how far clocks go."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite

from vitscale.analysis import text
from vitscale.analysis.exposed import few_pairs
from vitscale.analysis.missing import APART
from vitscale.analysis.result import RunResult, StudyResult
from vitscale.records.schema import Manifest
from vitscale.report.rows import label
from vitscale.units import seconds

_BETWEEN_RANKS = ("silence", "overlap", *APART)
_WORDS = {
    "silence": "steps without collectives",
    "overlap": "communication by the profiler",
    "trace": "the trace",
    "roofline": "the roofline",
    "overhead": "what measuring cost",
    "memory": "memory by class",
    "launch_gap_s": "the launch gap",
    **dict.fromkeys(APART, "communication and waiting apart"),
}
"""Field of a record -> what the report calls it."""
_MOST_REASONS = 8


def untold(result: StudyResult) -> str:
    """Each reason once, with what is missing for it and in which run; empty where nothing is."""
    runs: dict[tuple[str, str], list[str]] = {}
    for run in result.analysis.runs:
        for what, reason in dict.fromkeys(_missing(run)):
            runs.setdefault((what, reason), []).append(label(result, run.run_id))
    whats: dict[tuple[str, str], list[str]] = {}
    for (what, reason), labels in runs.items():
        whats.setdefault((reason, text.names(labels)), []).append(what)
    told = [f"{', '.join(some)}: {reason} ({labels})" for (reason, labels), some in whats.items()]
    more = len(told) - _MOST_REASONS
    rest = f"; and {text.count(more, 'further reason')}, in `missing` of analysis.json" if more > 0 else ""
    return f"{'; '.join(told[:_MOST_REASONS])}{rest}." if told else ""


def _missing(run: RunResult) -> Iterator[tuple[str, str]]:
    """What is missing and why; one rank has nothing to tell of others."""
    for name, reason in run.missing.items():
        if run.world_size > 1 or name not in _BETWEEN_RANKS:
            yield _WORDS.get(name, name), reason


def methods(result: StudyResult) -> str:
    """Which of the three methods tell exposed communication; said where it rests on one of them alone."""
    runs = [run for run in result.analysis.runs if run.world_size > 1 and run.source == "measured" and run.launches]
    ways = {run.run_id: _ways(run) for run in runs}
    if not any(ways.values()):
        return ""
    several = [run for run in runs if len(ways[run.run_id]) > 1]
    parts = [f"by two methods or three in {len(several)} of {text.count(len(runs), 'run')} of several ranks"]
    for way in ("arrivals", "steps without collectives", "the profiler"):
        alone = [label(result, run.run_id) for run in runs if ways[run.run_id] == [way]]
        parts += [f"by {way} alone in {text.names(alone)}"] if alone else []
    few = [label(result, run.run_id) for run in runs if _too_few(result, run)]
    parts += [f"too few steps without collectives to judge by in the one launch of {text.names(few)}"] if few else []
    link = [label(result, run.run_id) for run in runs if run.idle_link_share is not None]
    parts += (
        [f"the same bytes timed on the idle link in place of steps without them in {text.names(link)}"] if link else []
    )
    nothing = [label(result, run.run_id) for run in runs if not ways[run.run_id]]
    parts += [f"not told in {text.names(nothing)}"] if nothing else []
    return f"{'; '.join(parts)}."


def _ways(run: RunResult) -> list[str]:
    told = {
        "arrivals": run.shares.comm_exposed,
        "steps without collectives": run.silent_share,
        "the profiler": run.profiled_share,
    }
    return [way for way, figure in told.items() if figure is not None]


def _too_few(result: StudyResult, run: RunResult) -> bool:
    """Whether its steps without collectives cannot be held against the other methods: a few, of one launch."""
    manifests = [one for one in result.manifests if one.run_id == run.run_id and one.status == "ok"]
    alone = run.silent_share is not None and run.silent_share.low is None
    return alone and few_pairs(device for one in manifests for device in one.devices)


def clocks(result: StudyResult) -> str:
    """How far apart the hosts' clocks were, and how far that estimate may be off, over all launches."""
    pairs = [pair for manifest in result.manifests for pair in _offsets(manifest)]
    if not pairs:
        return ""
    apart, off = max(abs(offset) for offset, _ in pairs), max(error for _, error in pairs)
    return (
        f"at most {seconds(apart)} apart, and set right before each launch by the fastest of several round trips, to "
        f"{seconds(off)} or better: so much may stand in waiting that is transfer, or the other way round."
    )


def _offsets(manifest: Manifest) -> list[tuple[float, float]]:
    """Offset and error of each host but the first, seconds; what is none is left out."""
    told = manifest.notes.get("clock_offset_s")
    pairs = [one for one in told[1:] if isinstance(one, list) and len(one) == 2] if isinstance(told, list) else []
    return [(float(a), float(b)) for a, b in pairs if _is_number(a) and _is_number(b)]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and isfinite(value)
