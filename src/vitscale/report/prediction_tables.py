"""Predictions as a table of text."""

from __future__ import annotations

from collections.abc import Callable

from vitscale.analysis.predicted import PredictedPoint, Spread
from vitscale.analysis.result import StudyResult
from vitscale.report.rows import label
from vitscale.report.tables import Table
from vitscale.units import NOT_AVAILABLE, decimal, number, percent, probability, seconds, size


def prediction_table(result: StudyResult) -> Table:
    """Every predicted world size, with its 95 % interval; memory, energy, cost and training where one is known."""
    points = [point for one in result.predictions for point in one.points]
    more = [(title, shown) for name, title, shown in _MORE if any(getattr(one, name) for one in points)]
    rows = []
    for one in result.predictions:
        for point in one.points:
            step, share, rate = point.step_s, point.efficiency, point.images_per_s
            rows.append(
                (
                    label(result, one.series),
                    f"{point.world_size:,}",
                    f"{seconds(step.median)} [{seconds(step.low95)}, {seconds(step.high95)}]",
                    number(rate.median if rate else None),
                    f"{percent(share.median)} [{percent(share.low95)}, {percent(share.high95)}]",
                    *(shown(point) for _, shown in more),
                    point.limit,
                )
            )
    titles = (title for title, _ in more)
    header = ("Series", "World size", "Step [95 %]", "Images per s", "Efficiency [95 %]", *titles, "Limited by")
    return Table("Predicted, not measured: median and 95 % interval", header, tuple(rows))


def _memory(point: PredictedPoint) -> str:
    told = _spread(point.memory_needed_bytes, size)
    return told if point.fit_probability is None else f"{told}, fits with {probability(point.fit_probability)}"


def _energy(point: PredictedPoint) -> str:
    told = _spread(point.energy_per_image_j, lambda value: decimal(value, "J"))
    return f"at most {told}" if point.energy_is_bound else told


def _cost(point: PredictedPoint) -> str:
    return _spread(point.cost_per_million_images, number)


def _training(point: PredictedPoint) -> str:
    return _spread(point.training_s, seconds)


def _spread(value: Spread | None, shown: Callable[[float], str]) -> str:
    return NOT_AVAILABLE if value is None else f"{shown(value.median)} [{shown(value.low95)}, {shown(value.high95)}]"


_MORE: tuple[tuple[str, str, Callable[[PredictedPoint], str]], ...] = (
    ("memory_needed_bytes", "Memory of a rank [95 %]", _memory),
    ("energy_per_image_j", "Energy per image [95 %]", _energy),
    ("cost_per_million_images", "Cost of a million images [95 %]", _cost),
    ("training_s", "Training with failures [95 %]", _training),
)
