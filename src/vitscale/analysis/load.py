"""A results folder as runs with figures per launch: what every analysis starts from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vitscale.analysis.devices import DeviceUse, device_use
from vitscale.analysis.facts import Facts, Spec, facts
from vitscale.analysis.split import StepFigures, aggregate_figures, step_figures
from vitscale.config import labels as label
from vitscale.config.imported import ImportedSpec
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
    """None where no steady step was recorded by every rank, and an imported source tells no step time."""
    images_per_s: float | None
    """Throughput: of the step, or as an imported source tells it."""
    devices: DeviceUse | None = None
    """What the samples of the devices say; None where there are none of the steady window."""


@dataclass(frozen=True)
class Run:
    """One run, over its launches."""

    run_id: str
    series: str
    spec: Spec
    facts: Facts
    source: Source
    axes: dict[str, Any]
    launches: tuple[LaunchFigures, ...]
    """All of them; none where the run is planned and not started."""

    @property
    def trains(self) -> bool:
        """Whether something is learnt, so that one launch is what was asked for."""
        return isinstance(self.spec, RunSpec) and self.spec.train is not None

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
    def images_per_s(self) -> list[float]:
        """One per launch that counts and has a throughput."""
        return [one.images_per_s for one in self.counted if one.images_per_s is not None]

    @property
    def devices(self) -> list[Device]:
        """Of every rank of every launch that counts."""
        return [device for one in self.counted if one.record.manifest for device in one.record.manifest.devices]

    @property
    def device_names(self) -> tuple[str, ...]:
        """Each name once, sorted."""
        told = [self.facts.device_name] if self.facts.device_name else []
        return tuple(sorted({*told, *(device.name for device in self.devices)}))

    @property
    def memory_peaks_bytes(self) -> list[float]:
        """Of the ranks, or as an imported source tells it."""
        aggregates = [one.record.aggregate for one in self.counted if one.record.aggregate is not None]
        told = [one.device_memory_used_bytes for one in aggregates]
        return [peak for peak in (*told, *(device.memory_peak_bytes for device in self.devices)) if peak is not None]


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
    specs: dict[str, Spec] = dict(planned)
    specs |= {one.run_id: one.spec for one in results.launches if one.spec is not None}
    known = facts(specs)
    launches = _launches(results, known)
    sources = {run_id: _source(spec, launches.get(run_id, [])) for run_id, spec in specs.items()}
    series = _series(specs, sources)
    varying = label.axes(specs)
    order: dict[str, int] = {}
    by_axes = sorted(specs, key=lambda run_id: label.natural(known[run_id].protocol or "", varying[run_id]))
    for run_id in (*planned, *by_axes):
        order.setdefault(series[run_id], len(order))
    runs = [
        Run(
            run_id,
            series[run_id],
            spec,
            known[run_id],
            sources[run_id],
            varying[run_id],
            tuple(launches.get(run_id, ())),
        )
        for run_id, spec in specs.items()
    ]
    runs.sort(key=lambda run: (order[run.series], run.facts.world_size, run.facts.nodes or 0, run.run_id))
    return StudyData(results, tuple(runs), label.labels(specs, series, varying))


def _planned(plan: dict[str, Any]) -> dict[str, Spec]:
    """run_id -> spec of the plan. One this version does not know is left to its launch folder."""
    specs: dict[str, Spec] = {}
    for run in plan.get("runs", ()):
        try:
            kind = ImportedSpec if run["spec"].get("source") == "imported" else RunSpec
            specs[run["run_id"]] = kind.model_validate(run["spec"])
        except (ValidationError, KeyError, TypeError, AttributeError):
            continue
    return specs


def _launches(results: Results, known: dict[str, Facts]) -> dict[str, list[LaunchFigures]]:
    by_index = step_figures(results.steps)
    found: dict[str, list[LaunchFigures]] = {}
    for index, record in enumerate(results.launches):
        figures = by_index.get(index)
        if figures is None and record.aggregate is not None:
            figures = aggregate_figures(record.aggregate)
        batch = known[record.run_id].global_batch if record.run_id in known else None
        rate = _images_per_s(record, figures, batch)
        found.setdefault(record.run_id, []).append(LaunchFigures(index, record, figures, rate, _device_use(record)))
    return found


def _device_use(record: Launch) -> DeviceUse | None:
    if record.manifest is None:
        return None
    layout = record.manifest.layout
    return device_use(record.samples, layout.world_size, layout.nodes or 1)


def _images_per_s(record: Launch, figures: StepFigures | None, global_batch: int | None) -> float | None:
    """What an imported source says of whole epochs comes first: it holds pauses between steps too."""
    told = record.aggregate
    if told is not None and told.images_per_epoch is not None and told.epoch_s is not None:
        return told.images_per_epoch / told.epoch_s
    if told is not None and told.images_per_s is not None:
        return told.images_per_s
    return None if figures is None or global_batch is None else global_batch / figures.step_s


def _source(spec: Spec, launches: list[LaunchFigures]) -> Source:
    """Source of a run's figures: measured where any is, because sources are never mixed."""
    manifests = [one.record.manifest for one in launches if one.record.manifest is not None]
    found = {manifest.source for manifest in manifests if manifest.status == "ok"}
    found = found or {manifest.source for manifest in manifests}
    for source in ("measured", "imported", "simulated"):
        if source in found:
            return source
    if isinstance(spec, ImportedSpec):
        return "imported"
    return "simulated" if spec.simulated_device else "measured"


def _series(specs: dict[str, Spec], sources: dict[str, Source]) -> dict[str, str]:
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
