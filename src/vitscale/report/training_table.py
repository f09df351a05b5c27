"""Whole trainings of simulated runs, with what checkpoints and failures add to their steps."""

from __future__ import annotations

from vitscale.analysis.result import StudyResult
from vitscale.cost.failures import TrainingTime
from vitscale.report.rows import label
from vitscale.report.tables import Table
from vitscale.units import seconds

NOTE = "training"
"""Key of a manifest's notes that holds a `TrainingTime`."""


def training_table(result: StudyResult) -> Table:
    """Every launch whose manifest has one, see `cost.failures`; none of runs that were measured."""
    rows = []
    for manifest in result.manifests:
        told = manifest.notes.get(NOTE)
        if isinstance(told, dict):
            one = TrainingTime(**told)
            size = "" if manifest.layout is None else f"{manifest.layout.world_size:,}"
            times = (one.steps_s, one.wall_s, one.interval_s, one.checkpoint_s, one.mtbf_s)
            rows.append((label(result, manifest.run_id), size, *map(seconds, times)))
    header = (
        "Run", "World size", "Steps alone", "With checkpoints and failures", "Work between checkpoints", "A checkpoint",
        "Between failures",
    )  # fmt: skip
    return Table("Simulated trainings, not measured", header, tuple(rows))
