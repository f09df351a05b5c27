"""Predictions as a table of text."""

from __future__ import annotations

from vitscale.analysis.result import StudyResult
from vitscale.report.rows import label
from vitscale.report.tables import Table
from vitscale.units import number, percent, seconds


def prediction_table(result: StudyResult) -> Table:
    """Every predicted world size, with its 95 % interval."""
    rows = []
    for one in result.predictions:
        for point in one.points:
            step, share = point.step_s, point.efficiency
            rows.append(
                (
                    label(result, one.series),
                    f"{point.world_size:,}",
                    f"{seconds(step.median)} [{seconds(step.low95)}, {seconds(step.high95)}]",
                    number(point.images_per_s.median),
                    f"{percent(share.median)} [{percent(share.low95)}, {percent(share.high95)}]",
                    point.limit,
                )
            )
    header = ("Series", "World size", "Step [95 %]", "Images per s", "Efficiency [95 %]", "Limited by")
    return Table("Predicted, not measured: median and 95 % interval", header, tuple(rows))
