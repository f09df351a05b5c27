"""Launches that never ran: records from the closed forms of `cost` and the device catalog, marked `simulated`.

A step has no noise here, so one launch of each run says everything, and nothing of it is an interval.
"""

from __future__ import annotations

import datetime
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from vitscale.config.runspec import RunSpec
from vitscale.cost import failures
from vitscale.cost.calibrated import CalibrationFile, read_calibration
from vitscale.cost.models import ViTShape, shape
from vitscale.cost.optimizers import moment_elements
from vitscale.cost.run import RunEstimate, estimate_run, simulated_machinery
from vitscale.cost.step import StepEstimate
from vitscale.hardware import catalog
from vitscale.launch.outcome import RoundEnd, Watch
from vitscale.records.round import Beat, Entry, Round
from vitscale.records.schema import Device, Layout, Manifest, Status, StepRecord
from vitscale.records.writer import RUN, StepWriter, make_folder, write_json, write_manifest
from vitscale.units import probability, size

STEPS = 10
"""Steady steps of a run whose steady window is given in seconds: they are all alike."""

_WRITERS = 8
"""Files written at once: a file takes its time waiting for the disk."""

_BACKWARD_SHARE = 2 / 3  # of forward and backward: cost.vit.training_flop, step 1


class Simulate:
    """Launcher that starts nothing."""

    def __init__(self, calibration: Path | None = None) -> None:
        """Take figures from data sheets, or from a `calibration.json`."""
        self._calibration = None if calibration is None else read_calibration(calibration)

    def run(self, results: Path, round_: Round, watch: Watch) -> RoundEnd:
        """Write the records of a round."""
        for number, entry in enumerate(round_.entries):
            watch(Beat(number, "setup", 0, 0, None))
            _simulate(results / entry.folder, entry, round_, self._calibration)
        watch(Beat(len(round_.entries), "done", 0, 0, None))
        return RoundEnd("ok")


def _simulate(folder: Path, entry: Entry, round_: Round, calibration: CalibrationFile | None) -> None:
    spec = RunSpec.model_validate(entry.spec)
    estimate = estimate_run(spec, simulated_machinery(spec, calibration))
    make_folder(folder)
    write_json(folder / RUN, spec.model_dump(mode="json"))
    reason = _impossible(estimate)
    steps = spec.measure.warmup_steps + (spec.measure.steps or STEPS)
    if reason is None:
        _write_steps(folder, spec, estimate.step, steps)
    status: Status = "ok" if reason is None else "oom" if estimate.fits is False else "skipped"
    write_manifest(folder, _manifest(entry, round_, spec, estimate, status, reason, steps if status == "ok" else 0))


def _impossible(estimate: RunEstimate) -> str | None:
    """Why the run would give no figures, or None."""
    if estimate.fits is False:
        needed, there = size(estimate.need.median_bytes), size(estimate.memory_limit_bytes)
        likely = probability(estimate.fit_probability)
        return f"a rank needs about {needed} of {there}: the probability that it fits is {likely}"
    if estimate.step.step_s is None:
        return f"the catalog does not say enough to estimate a step: {'; '.join(estimate.step.assumptions)}"
    return None


def _write_steps(folder: Path, spec: RunSpec, step: StepEstimate, steps: int) -> None:
    """The step lines of all ranks, in a file for each node."""
    one = _record(step)
    warmup_steps = spec.measure.warmup_steps
    windows = ["warmup"] * warmup_steps + ["steady"] * (steps - warmup_steps)

    def write(node: int) -> None:
        first = node * spec.ranks_per_node
        with closing(StepWriter(folder, node=node)) as writer:
            for rank in range(first, first + spec.ranks_per_node):
                images = spec.images_counted(rank)
                writer.write(
                    one._replace(step=number, window=window, rank=rank, images=images)
                    for number, window in enumerate(windows)
                )

    with ThreadPoolExecutor(_WRITERS) as pool:
        list(pool.map(write, range(spec.nodes)))


def _record(step: StepEstimate) -> StepRecord:
    """A step: its times are those of every step of every rank."""
    assert step.step_s is not None
    assert step.compute_s is not None
    sent_s, exposed_s = step.communication_s, step.exposed_comm_s
    return StepRecord(
        step=0,
        window="warmup",
        rank=0,
        loss=None,
        images=None,
        step_s=step.step_s,
        data_s=step.data_s,
        forward_s=step.compute_s * (1 - _BACKWARD_SHARE),
        backward_s=step.compute_s * _BACKWARD_SHARE,
        optimizer_s=step.optimizer_s,
        comm_exposed_s=exposed_s,
        comm_s=sent_s,
        comm_overlapped_s=None if sent_s is None or exposed_s is None else sent_s - exposed_s,
        wait_s=step.wait_s,
    )


def _training(spec: RunSpec, estimate: RunEstimate) -> dict[str, dict[str, float | None]]:
    """Of a run that trains: the whole training with its checkpoints and failures."""
    steps = None if spec.train is None else spec.train.total_steps(spec.data.images, spec.global_batch)
    if steps is None or estimate.step.step_s is None:
        return {}
    kept_bytes = 4 * (estimate.parameters + moment_elements(_shape(spec), spec.optimizer.name))
    found = failures.training_time(steps * estimate.step.step_s, spec.world_size, kept_bytes, spec.nodes)
    return {"training": asdict(found)}


def _shape(spec: RunSpec) -> ViTShape:
    return shape(spec.model.name, **spec.model.sizes)


def _manifest(
    entry: Entry, round_: Round, spec: RunSpec, estimate: RunEstimate, status: Status, reason: str | None, steps: int
) -> Manifest:
    assert spec.simulated_device is not None
    per_node, training = spec.ranks_per_node, _training(spec, estimate)
    # One entry per rank, alike: what differs between real devices is not known here.
    devices = tuple(
        Device(
            rank=rank,
            node=rank // per_node,
            local_rank=rank % per_node,
            kind=spec.device,
            name=catalog.title(spec.simulated_device),
            memory_bytes=estimate.memory_limit_bytes,
            memory_peak_bytes=estimate.memory.total_bytes,
        )
        for rank in range(spec.world_size)
    )
    return Manifest(
        run_id=entry.run_id,
        launch=entry.launch,
        round=round_.name,
        status=status,
        reason=reason,
        source="simulated",
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        devices=devices,
        layout=Layout(world_size=spec.world_size, nodes=spec.nodes, ranks_per_node=per_node, backend="none"),
        steps=steps,
        parameters=estimate.parameters,
        notes={
            "assumptions": [*estimate.step.assumptions, *([failures.ASSUMED] if training else [])],
            "loss": "nothing was trained",
            "memory": "nothing was held",
            **training,
        },
    )
