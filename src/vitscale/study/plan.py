"""The plan: every run of a study with what it will need, before anything is started. `plan.json` is its document."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitscale.config.load import Loaded
from vitscale.config.runspec import RunSpec
from vitscale.config.study import DataSection
from vitscale.cost.calibrated import CalibrationFile, read_calibration
from vitscale.cost.collectives import Link, Links
from vitscale.cost.run import Machinery, RunEstimate, estimate_run, simulated_machinery
from vitscale.data import catalog as datasets
from vitscale.data import prepare as preparing
from vitscale.data import store
from vitscale.hardware import catalog
from vitscale.hardware.probe import matrix_flop_per_s
from vitscale.hardware.topology import Topology
from vitscale.study.grid import Grid, Images, build
from vitscale.study.where import Where

SCHEMA_VERSION = 1

START_S = 5.0
"""Assumed time of one process start: torch, timm and DeepSpeed imported, ranks met (2 cores, files cached: 4 to 6)."""

SETUP_S = 1.0
"""Assumed time to build a model and its engine and to close a launch."""

_MEMORY_STEPS = 1  # in which memory is counted

CPU_SHARE = 0.65
"""Assumed share of the measured fp32 matrix rate that training reaches on a CPU (ViT-Ti, 32 px: 58 of 87 GFLOP/s)."""

LOOPBACK = Link(bytes_per_s=0.9e9, latency_s=1e-4)
"""Assumed for gloo between processes of one host (22 MB all-reduce, 2 ranks, 2 cores: about 25 ms)."""


PAYLOAD_SHARE = 0.94
"""Share of a shaped link's bits that carry data: an all-reduce of 2 ranks puts 1.06 bytes on it for each of its own,
headers and acknowledgements included (counted, MTU 1,500)."""


@dataclass(frozen=True)
class Plan:
    """A study resolved: its runs in order, what each costs, what was skipped."""

    loaded: Loaded
    grid: Grid
    estimates: dict[str, RunEstimate]
    """By run_id."""
    labels: dict[str, str]
    """run_id -> short label."""
    expected_s: float | None
    """Wall time of the whole study; None where a step's time is not known and `measure.steps` decides."""

    def document(self) -> dict[str, Any]:
        """As JSON: `plan.json`."""
        return {
            "schema_version": SCHEMA_VERSION,
            "launches": self.loaded.study.measure.launches,
            "expected_s": self.expected_s,
            "runs": [
                {
                    "run_id": run.run_id,
                    "series": run.series,
                    "label": self.labels[run.run_id],
                    "spec": run.model_dump(mode="json"),
                    "estimate": self.estimates[run.run_id].document(),
                }
                for run in self.grid.runs
            ],
            "skipped": [{"label": one.label, "reason": one.reason} for one in self.grid.skipped],
            "notes": [*self.loaded.notes, *self.grid.notes],
        }


def make(loaded: Loaded, where: Where, images_of: Callable[[DataSection], Images]) -> Plan:
    """Resolve a study and estimate each of its runs.

    Raises:
        UsageError: a value that can never be valid, or a world size of which no run is left.
        SetupError: CUDA is asked for and there is none.
        DataError: a data set that is not there.
    """
    grid = build(loaded.study, where, images_of)
    timed = where.simulated is None and any(run.device == "cpu" for run in grid.runs)
    cpu_rate = matrix_flop_per_s() if timed else None
    path = loaded.study.hardware.calibration
    fitted = read_calibration(Path(path).expanduser()) if path and where.simulated else None
    estimates = {run.run_id: estimate_run(run, machinery(run, where, cpu_rate, fitted)) for run in grid.runs}
    return Plan(loaded, grid, estimates, grid.labels(), _expected_s(loaded, grid, estimates))


def described(root: Path) -> Callable[[DataSection], Images]:
    """Facts of data sets as they lie there: nothing is prepared or read."""

    def images_of(section: DataSection) -> Images:
        path = Path(section.path) if section.path else None
        facts = datasets.describe(section.name, root, path)
        preparing.require_sensible(section.name, path)
        prepared = datasets.find_prepared(section.name, root, path) if section.name != "synthetic" else None
        return Images(facts, _fingerprint(prepared) if prepared else "generated")

    return images_of


def prepared(root: Path, report: Callable[[str], None]) -> Callable[[DataSection], Images]:
    """Facts of data sets, each prepared first if it is not yet."""

    def images_of(section: DataSection) -> Images:
        source = Path(section.path) if section.path else None
        preparing.prepare(section.name, root, source=source, report=report)
        return described(root)(section)

    return images_of


def _fingerprint(folder: Path) -> str:
    """First 16 hex digits of a sha256 over the sha256 of every prepared file."""
    files = store.read_meta(folder).files
    text = "\n".join(f"{name} {files[name].sha256}" for name in sorted(files))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def machinery(
    run: RunSpec, where: Where, cpu_matrix_flop_per_s: float | None, calibration: CalibrationFile | None = None
) -> Machinery:
    """What is known of the machine a run is planned for."""
    if where.simulated is not None:
        return simulated_machinery(run, calibration)
    if run.device == "cpu":
        rate = None
        if cpu_matrix_flop_per_s is not None and run.precision == "fp32" and not run.oversubscribed:
            share = (run.threads_per_rank or 1) / len(where.machine.cores)
            rate = CPU_SHARE * cpu_matrix_flop_per_s * min(1.0, share)
        memory = where.machine.memory_bytes // where.sharing(Topology(run.nodes, run.ranks_per_node))
        return Machinery(None, Links(LOOPBACK, _between_hosts(run)), memory, rate)
    gpu = where.machine.gpus[0]
    device = catalog.match(gpu.name)
    links = device.links(run.ranks_per_node) if device else Links(None, None)
    return Machinery(device, links, gpu.memory_bytes)


def _between_hosts(run: RunSpec) -> Link:
    """The network of the launcher `lab`; ranks of one host do not use it."""
    shaped = run.link_bytes_per_s
    bytes_per_s = LOOPBACK.bytes_per_s if shaped is None else min(LOOPBACK.bytes_per_s, PAYLOAD_SHARE * shaped)
    return Link(bytes_per_s, LOOPBACK.latency_s)


def _expected_s(loaded: Loaded, grid: Grid, estimates: dict[str, RunEstimate]) -> float | None:
    """Launches of every run and the process starts that serve them; one start serves a world size's runs."""
    total_s = 0.0
    for run in grid.runs:
        launch_s = _launch_s(run, estimates[run.run_id].step.step_s)
        if launch_s is None:
            return None
        total_s += launch_s
    starts = {run.process_start for run in grid.runs}
    simulated = any(run.simulated_device for run in grid.runs)
    return 0.0 if simulated else loaded.study.measure.launches * (total_s + START_S * len(starts))


def _launch_s(run: RunSpec, step_s: float | None) -> float | None:
    """Wall time of one launch, evaluations aside; None where the number of steps is fixed and a step's time not known.

    A run that trains takes all steps of its training.
    """
    measure = run.measure
    steps = measure.steps if run.train is None else run.train.total_steps(run.data.images, run.global_batch)
    if steps is not None:
        more = measure.warmup_steps + _MEMORY_STEPS if run.train is None else 0
        return None if step_s is None else SETUP_S + (more + steps) * step_s
    return SETUP_S + (measure.warmup_steps + _MEMORY_STEPS) * (step_s or 0.0) + (measure.seconds or 0.0)
