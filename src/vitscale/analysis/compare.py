"""Two results folders side by side: what was asked and used differently, and which runs took longer or shorter.

A run changed where the 95 % interval of the ratio of its step times, B over A, excludes 1. With many runs, one in
twenty changes by chance; the ratios and intervals are there to judge that by.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from vitscale.analysis.load import Run, StudyData, load
from vitscale.config.labels import axes, flatten, spec_keys
from vitscale.statistics import Estimate, interval, ratio_interval

Verdict = Literal["faster", "slower", "no difference detected", "cannot tell", "only in A", "only in B"]

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Difference:
    """A key whose value is not the same in both; a key that one lacks is None there."""

    key: str
    a: Any
    b: Any


@dataclass(frozen=True)
class RunComparison:
    """One run in both folders, or in one of them."""

    label: str
    run_id_a: str | None
    run_id_b: str | None
    step_s_a: Estimate | None
    """None where no launch counts."""
    step_s_b: Estimate | None
    launches_a: int
    launches_b: int
    ratio: Estimate | None
    """`step_s` of B over A: below 1 is faster. None where either has no launch that counts."""
    verdict: Verdict

    @property
    def changed(self) -> bool:
        """Whether the step time differs beyond its noise."""
        return self.verdict in ("faster", "slower")


@dataclass(frozen=True)
class Comparison:
    """Two results folders."""

    a: str
    b: str
    configuration: tuple[Difference, ...]
    """Of `resolved.json`, by dotted key."""
    versions: tuple[Difference, ...]
    """By package; each side lists every version its launches used."""
    devices: tuple[Difference, ...]
    """`name` and `layout`, each side lists all."""
    runs: tuple[RunComparison, ...]

    @property
    def changed(self) -> bool:
        """Whether any run is faster or slower: `vitscale compare` then ends with 1."""
        return any(run.changed for run in self.runs)

    def to_dict(self) -> dict[str, Any]:
        """As JSON for `--json`."""
        runs = [
            {**asdict(run), **{key: _json(getattr(run, key)) for key in ("step_s_a", "step_s_b", "ratio")}}
            for run in self.runs
        ]
        return {"schema_version": SCHEMA_VERSION, "changed": self.changed, **asdict(self), "runs": runs}


def compare(a: Path, b: Path) -> Comparison:
    """Compare two results folders, B against A.

    Raises:
        ResultsError: one of them is no results folder, or a record in it is damaged or of a newer format.
    """
    one, other = load(a), load(b)
    return Comparison(
        a=str(a),
        b=str(b),
        configuration=_differences(flatten(one.results.resolved), flatten(other.results.resolved)),
        versions=_differences(_versions(one), _versions(other)),
        devices=_differences(_devices(one), _devices(other)),
        runs=tuple(_compared(one, other)),
    )


def _compared(one: StudyData, other: StudyData) -> Iterator[RunComparison]:
    pairs = _matched(one.runs, other.runs)
    for run in one.runs:
        yield _run(one.labels[run.run_id], run, pairs.get(run.run_id))
    taken = {run.run_id for run in pairs.values()}
    for run in other.runs:
        if run.run_id not in taken:
            yield _run(other.labels[run.run_id], None, run)


def _matched(a: Sequence[Run], b: Sequence[Run]) -> dict[str, Run]:
    """run_id of A -> run of B: the same run_id first, then the same protocol, size, batch and axes of either study."""
    by_id = {run.run_id: run for run in b}
    pairs = {run.run_id: by_id[run.run_id] for run in a if run.run_id in by_id}
    keys = {key for runs in (a, b) for found in axes(_specs(runs)).values() for key in found}
    taken = {run.run_id for run in pairs.values()}
    free = {_signature(run, keys): run for run in reversed(b) if run.run_id not in taken}
    for run in a:
        if run.run_id not in pairs and (match := free.pop(_signature(run, keys), None)) is not None:
            pairs[run.run_id] = match
    return pairs


def _specs(runs: Sequence[Run]) -> dict[str, Any]:
    return {run.run_id: run.spec for run in runs}


def _signature(run: Run, keys: set[str]) -> tuple[Any, ...]:
    """What has to be equal for two runs to be held against each other."""
    facts, values = run.facts, spec_keys(run.spec)
    batch = (facts.micro_batch, facts.grad_accum, facts.global_batch)
    return (facts.protocol, facts.world_size, facts.nodes, batch, *(repr(values.get(key)) for key in sorted(keys)))


def _run(label: str, a: Run | None, b: Run | None) -> RunComparison:
    times_a, times_b = (run.step_s if run else [] for run in (a, b))
    ratio = ratio_interval(times_b, times_a) if times_a and times_b else None
    return RunComparison(
        label=label,
        run_id_a=a.run_id if a else None,
        run_id_b=b.run_id if b else None,
        step_s_a=interval(times_a) if times_a else None,
        step_s_b=interval(times_b) if times_b else None,
        launches_a=len(times_a),
        launches_b=len(times_b),
        ratio=ratio,
        verdict=_verdict(times_a, times_b, ratio),
    )


def _verdict(times_a: Sequence[float], times_b: Sequence[float], ratio: Estimate | None) -> Verdict:
    if ratio is None:
        return "only in A" if times_a else "only in B" if times_b else "cannot tell"
    if ratio.low is None or ratio.high is None:
        return "cannot tell"
    return "faster" if ratio.high < 1 else "slower" if ratio.low > 1 else "no difference detected"


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[Difference, ...]:
    return tuple(
        Difference(key, a.get(key), b.get(key)) for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)
    )


def _versions(study: StudyData) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {}
    for launch in study.results.launches:
        for package, version in launch.manifest.versions.items() if launch.manifest else ():
            found.setdefault(package, set()).add(version)
    return {package: sorted(versions) for package, versions in found.items()}


def _devices(study: StudyData) -> dict[str, list[str]]:
    manifests = [launch.manifest for launch in study.results.launches if launch.manifest is not None]
    layouts = {(one.layout.world_size, one.layout.nodes or 0, one.layout.backend or "") for one in manifests}
    named = {run.facts.device_name for run in study.runs if run.facts.device_name}
    return {
        "name": sorted(named | {device.name for one in manifests for device in one.devices}),
        "layout": [
            f"{size} ranks on {nodes or 'n/a'} nodes, {backend or 'n/a'}" for size, nodes, backend in sorted(layouts)
        ],
    }


def _json(estimate: Estimate | None) -> dict[str, float | None] | None:
    return None if estimate is None else estimate._asdict()
