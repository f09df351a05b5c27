"""A results folder as runs with figures per launch: what every analysis starts from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vitscale.analysis.split import StepFigures, step_figures
from vitscale.config import labels as label
from vitscale.config.runspec import RunSpec
from vitscale.records.reader import Launch, Results, read_results
from vitscale.records.schema import Device, Source


@dataclass(frozen=True)
class LaunchFigures:
    """One launch and what its steady window says."""

    index: int
    """Position in `Results.launches`."""
    record: Launch
    figures: StepFigures | None
    """None where no steady step was recorded by every rank."""


@dataclass(frozen=True)
class Run:
    """One run, over its launches."""

    run_id: str
    series: str
    spec: RunSpec
    source: Source
    axes: dict[str, Any]
    launches: tuple[LaunchFigures, ...]
    """All of them; none where the run is planned and not started."""

    @property
    def counted(self) -> list[LaunchFigures]:
        """Launches that count: status `ok`, of the run's source."""
        return [one for one in self.launches if _counts(one.record, self.source)]

    @property
    def figures(self) -> list[StepFigures]:
        """Figures of the launches that count."""
        return [one.figures for one in self.counted if one.figures is not None]

    @property
    def step_s(self) -> list[float]:
        """One per launch that counts: its median steady step of the slowest rank, seconds."""
        return [one.step_s for one in self.figures]

    @property
    def devices(self) -> list[Device]:
        """Of every rank of every launch that counts."""
        return [device for one in self.counted if one.record.manifest for device in one.record.manifest.devices]

    @property
    def device_names(self) -> tuple[str, ...]:
        """Each name once, sorted."""
        return tuple(sorted({device.name for device in self.devices}))


@dataclass(frozen=True)
class StudyData:
    """A study's runs, in order: by series as planned, then by world size and nodes."""

    results: Results
    runs: tuple[Run, ...]
    labels: dict[str, str]
    """run_id and series -> short label."""

    @property
    def by_series(self) -> dict[str, list[Run]]:
        """Runs of each series, in order."""
        found: dict[str, list[Run]] = {}
        for run in self.runs:
            found.setdefault(run.series, []).append(run)
        return found


def load(folder: Path) -> StudyData:
    """Read a results folder.

    Raises:
        ResultsError: it is no results folder, or a record in it is damaged or of a newer format.
    """
    results = read_results(folder)
    planned = _planned(results.plan)
    launches = _launches(results)
    specs = dict(planned)
    for run_id, found in launches.items():
        received = [one.record.spec for one in found if one.record.spec is not None]
        if received:
            specs[run_id] = received[-1]
    sources = {run_id: _source(spec, launches.get(run_id, [])) for run_id, spec in specs.items()}
    series = _series(specs, sources)
    varying = label.axes(specs)
    order: dict[str, int] = {}
    for run_id in (*planned, *sorted(specs, key=lambda run_id: label.natural(specs[run_id].protocol, varying[run_id]))):
        order.setdefault(series[run_id], len(order))
    runs = [
        Run(run_id, series[run_id], spec, sources[run_id], varying[run_id], tuple(launches.get(run_id, ())))
        for run_id, spec in specs.items()
    ]
    runs.sort(key=lambda run: (order[run.series], run.spec.world_size, run.spec.nodes, run.run_id))
    return StudyData(results, tuple(runs), label.labels(specs, series, varying))


def _planned(plan: dict[str, Any]) -> dict[str, RunSpec]:
    """run_id -> RunSpec of the plan. One this version does not know is left to its launch folder."""
    specs = {}
    for run in plan.get("runs", ()):
        try:
            specs[run["run_id"]] = RunSpec.model_validate(run["spec"])
        except (ValidationError, KeyError, TypeError):
            continue
    return specs


def _launches(results: Results) -> dict[str, list[LaunchFigures]]:
    figures = step_figures(results.steps)
    found: dict[str, list[LaunchFigures]] = {}
    for index, record in enumerate(results.launches):
        found.setdefault(record.run_id, []).append(LaunchFigures(index, record, figures.get(index)))
    return found


def _source(spec: RunSpec, launches: list[LaunchFigures]) -> Source:
    """Source of a run's figures: measured where any is, because sources are never mixed."""
    manifests = [one.record.manifest for one in launches if one.record.manifest is not None]
    found = {manifest.source for manifest in manifests if manifest.status == "ok"}
    found = found or {manifest.source for manifest in manifests}
    for source in ("measured", "imported", "simulated"):
        if source in found:
            return source
    return "simulated" if spec.simulated_device else "measured"


def _series(specs: dict[str, RunSpec], sources: dict[str, Source]) -> dict[str, str]:
    """run_id -> series. Where runs of one series come from several sources, each source is a series of its own."""
    found: dict[str, set[Source]] = {}
    for run_id, spec in specs.items():
        found.setdefault(spec.series, set()).add(sources[run_id])
    return {
        run_id: spec.series if len(found[spec.series]) == 1 else f"{spec.series}-{sources[run_id]}"
        for run_id, spec in specs.items()
    }


def _counts(record: Launch, source: Source) -> bool:
    return record.ok and record.manifest is not None and record.manifest.source == source
