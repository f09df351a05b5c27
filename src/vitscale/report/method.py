"""How a study was measured, in words, from what its records say."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import pairwise
from statistics import median
from typing import Any

from vitscale.analysis import text
from vitscale.analysis.result import StudyResult
from vitscale.analysis.start_up import StartUp
from vitscale.records.schema import Manifest
from vitscale.report.rows import label
from vitscale.report.untold import clocks, methods, untold
from vitscale.statistics import BOOTSTRAP_FROM
from vitscale.units import percent, seconds, size

_MOST_ROUNDS = 12
_COMMAND = "`vitscale run study.toml`, with the overrides that are in the study below."


def method(result: StudyResult) -> tuple[tuple[str, str], ...]:
    """Terms and what they are in this study; a term of which the records say nothing is left out."""
    facts = [
        ("Launches", _launches(result)),
        ("Rounds", _rounds(result)),
        ("Warm-up and steady window", _window(result)),
        (
            "Interval",
            "Per launch the median over the steady window of the slowest rank's step; across launches the median with "
            f"a 95 % interval: Student's t on the logarithms below {BOOTSTRAP_FROM} launches, a bootstrap-t of the "
            f"median from {BOOTSTRAP_FROM} on. Speed-up and efficiency carry the baseline's noise too.",
        ),
        ("Start-up", _start_up(result)),
        ("Cost of measuring", _overhead(result)),
        ("Exposed communication", methods(result)),
        ("Clocks of the hosts", clocks(result)),
        ("Not told, and why", untold(result)),
        ("Baseline", _baselines(result)),
        ("Device", _devices(result)),
        ("Model FLOP utilisation", _peaks(result)),
        ("Layout", _layouts(result)),
        ("CPU threads per rank", _threads(result)),
        ("Model", _values(result, "model")),
        ("Data set", _values(result, "dataset")),
        ("Optimizer", _values(result, "optimizer")),
        ("Engine", _values(result, "engine")),
        ("Precision", _values(result, "precision")),
        ("Source", _values(result, "source")),
        ("Imported from", _imported(result)),
        ("Versions", _versions(result)),
        ("Command", _command(result)),
    ]
    return tuple((term, words) for term, words in facts if words)


def _launches(result: StudyResult) -> str:
    counts = [run.launches for run in result.analysis.runs]
    if not any(counts):
        return ""
    many = (
        text.count(max(counts), "launch") if min(counts) == max(counts) else f"{min(counts)} to {max(counts)} launches"
    )
    total = text.count(len(result.launches), "launch")
    return (
        f"{many} that count per run, each a fresh process start; {total} in all, of {text.count(len(counts), 'run')}."
    )


def _rounds(result: StudyResult) -> str:
    first: dict[str, Manifest] = {}
    for one in sorted(result.manifests, key=lambda one: (one.started or "", one.round or "")):
        # An imported launch was in no round of ours.
        if one.round is not None:
            first.setdefault(one.round, one)
    if not first:
        return ""
    sizes = [one.layout.world_size for one in first.values()]
    changes = sum(a != b for a, b in pairwise(sizes))
    order = ", ".join(str(value) for value in sizes[:_MOST_ROUNDS]) + (", …" if len(sizes) > _MOST_ROUNDS else "")
    if len(set(sizes)) == 1:
        return f"{text.count(len(sizes), 'round')} at world size {sizes[0]}."
    taken = "interleaved" if changes >= len(set(sizes)) else "not interleaved, so drift could be read as scaling"
    return f"{text.count(len(sizes), 'round')}; world sizes in the order they were started: {order} ({taken})."


def _window(result: StudyResult) -> str:
    steady = {
        (one.run_id, one.launch): one.steps for one in result.launches if one.status == "ok" and one.steps is not None
    }
    recorded = {(one.run_id, one.launch): one.steps for one in result.manifests if one.status == "ok"}
    if not steady:
        return ""
    warm = [recorded[key] - steps for key, steps in steady.items() if recorded.get(key, 0) >= steps]
    told = f"{_span(warm)} warm-up steps, recorded and not counted; " if warm else ""
    return f"{told}{_span(steady.values())} steady steps per launch."


_START_UP = {
    "import_s": "libraries",
    "group_s": "process group",
    "timing_s": "links and devices timed",
    "setup_s": "model and engine",
    "data_s": "images",
}


def _start_up(result: StudyResult) -> str:
    """By world size, median over its runs."""
    found: dict[int, list[StartUp]] = {}
    for run in result.analysis.runs:
        if run.start_up is not None:
            found.setdefault(run.world_size, []).append(run.start_up)

    def shown(of_runs: list[StartUp], name: str) -> str:
        return seconds(median(getattr(one, name) for one in of_runs))

    told = []
    for ranks, of_runs in sorted(found.items()):
        parts = ", ".join(f"{words} {shown(of_runs, name)}" for name, words in _START_UP.items())
        told.append(f"{text.count(ranks, 'rank')} {shown(of_runs, 'total_s')} ({parts})")
    if not told:
        return ""
    return f"{'; '.join(told)}: from the start of the processes to the first step, medians; in no step."


def _overhead(result: StudyResult) -> str:
    """The worst of the runs."""
    told = [(run.overhead_share, run.run_id) for run in result.analysis.runs if run.overhead_share is not None]
    if not told:
        return ""
    worst, run_id = max(told)
    return (
        f"{percent(worst, 2)} of the step at most ({label(result, run_id)}): what was done for the records, timed on "
        "its own after the steady window, times how often a step did it."
    )


def _baselines(result: StudyResult) -> str:
    runs = {run.run_id: run for run in result.analysis.runs}
    sizes: dict[int, list[str]] = {}
    for series, run_id in result.analysis.baselines.items():
        sizes.setdefault(runs[run_id].world_size, []).append(label(result, series))
    return "; ".join(f"world size {value} for {text.names(labels)}" for value, labels in sorted(sizes.items()))


def _devices(result: StudyResult) -> str:
    kinds = {(one.name, one.kind, one.memory_bytes) for manifest in result.manifests for one in manifest.devices}
    told = [
        f"{name} ({kind}{f', {size(memory)}' if memory else ''})"
        for name, kind, memory in sorted(kinds, key=lambda one: (one[0] or "", one[1] or "", one[2] or 0))
    ]
    return "; ".join(told) or _values(result, "device")


def _layouts(result: StudyResult) -> str:
    found = {(one.layout.world_size, one.layout.nodes or 0, one.layout.backend or "") for one in result.manifests}
    told = []
    for ranks, nodes, backend in sorted(found):
        where = f" on {text.count(nodes, 'node')}" if nodes else ""
        told.append(f"{text.count(ranks, 'rank')}{where}{f' ({backend})' if backend else ''}")
    return "; ".join(told)


def _threads(result: StudyResult) -> str:
    found = {one.threads for manifest in result.manifests for one in manifest.devices if one.threads is not None}
    return _span(found) if found else ""


def _versions(result: StudyResult) -> str:
    found: dict[str, set[str]] = {}
    for one in result.manifests:
        for name, version in one.versions.items():
            found.setdefault(name, set()).add(version)
    return ", ".join(f"{name} {' and '.join(sorted(versions))}" for name, versions in sorted(found.items()))


def _values(result: StudyResult, field: str) -> str:
    return ", ".join(
        dict.fromkeys(str(value) for run in result.analysis.runs if (value := getattr(run, field)) is not None)
    )


def _peaks(result: StudyResult) -> str:
    """The first few: of a peak that was timed each run has its own."""
    return text.names(list(dict.fromkeys(run.mfu_reason for run in result.analysis.runs if run.mfu_reason)))


def _command(result: StudyResult) -> str:
    return _COMMAND if result.resolved and "imported" not in result.resolved else ""


def _imported(result: StudyResult) -> str:
    """Source files, and by count what was read of them; their sha256 are in the study below."""
    told = [
        f"{one['file']} ({one['format']}: {one['lines']:,} lines, {one['read']:,} read, {one['damaged']:,} damaged)"
        for one in result.resolved.get("imported", ())
    ]
    return text.names(told)


def resolved_text(resolved: dict[str, Any]) -> str:
    """`resolved.json` as it is read."""
    return json.dumps(resolved, indent=2, ensure_ascii=False) if resolved else ""


def _span(values: Iterable[int]) -> str:
    told = sorted(set(values))
    return f"{told[0]:,}" if told[0] == told[-1] else f"{told[0]:,} to {told[-1]:,}"
