"""Predictions as a table of text."""

from __future__ import annotations

from collections.abc import Callable

from vitscale.analysis.predicted import PredictedPoint, Spread
from vitscale.analysis.result import StudyResult
from vitscale.report.rows import label
from vitscale.report.tables import Table
from vitscale.units import NOT_AVAILABLE, decimal, number, percent, seconds

_COST = "cost_per_million_images"


def prediction_table(result: StudyResult) -> Table:
    """Every predicted world size, with its 95 % interval; energy and cost where one of them is known."""
    points = [point for one in result.predictions for point in one.points]
    energy, cost = (any(getattr(one, name) for one in points) for name in ("energy_per_image_j", _COST))
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
                    *([_energy(point)] if energy else []),
                    *([_spread(point.cost_per_million_images, number)] if cost else []),
                    point.limit,
                )
            )
    more = [*(["Energy per image [95 %]"] if energy else []), *(["Cost of a million images [95 %]"] if cost else [])]
    header = ("Series", "World size", "Step [95 %]", "Images per s", "Efficiency [95 %]", *more, "Limited by")
    return Table("Predicted, not measured: median and 95 % interval", header, tuple(rows))


def _energy(point: PredictedPoint) -> str:
    told = _spread(point.energy_per_image_j, lambda value: decimal(value, "J"))
    return f"at most {told}" if point.energy_is_bound else told


def _spread(value: Spread | None, shown: Callable[[float], str]) -> str:
    return NOT_AVAILABLE if value is None else f"{shown(value.median)} [{shown(value.low95)}, {shown(value.high95)}]"
