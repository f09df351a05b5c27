"""A step as its record has it."""

from __future__ import annotations

from vitscale.config.runspec import RunSpec
from vitscale.records.schema import StepRecord
from vitscale.worker.clock import StepTimes


def record(spec: RunSpec, rank: int, window: str, step: int, times: StepTimes, loss: float | None) -> StepRecord:
    """One line of a rank."""
    return StepRecord(
        step=step,
        window=window,
        rank=rank,
        loss=loss,
        images=spec.images_counted(rank),
        step_s=times["step"],
        data_s=times.get("data"),
        forward_s=times.get("forward"),
        backward_s=times.get("backward"),
        optimizer_s=times.get("optimizer"),
        comm_exposed_s=times.get("comm_exposed"),
        wait_s=times.get("wait"),
        comm_s=times.get("comm"),
        comm_overlapped_s=times.get("comm_overlapped"),
        launch_gap_s=times.get("launch_gap"),
        late_s=times.get("late"),
    )
