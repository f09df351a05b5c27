"""What a launch's step lines say: the slowest rank's step, its parts, its drift.

Definitions, for one launch:

1. A step of the steady window is counted where every rank recorded it (a launch that was cut off loses its last steps).
2. Its time is the largest `step_s` over the ranks, and its parts are that rank's: parts of different ranks never mix.
   Of ranks that are equally slow the lowest number is taken.
3. `step_s` of the launch is the median over the counted steps.
4. The share of a part is its sum over the counted steps over the sum of their `step_s`, so that shares add up.
   Contract with the worker: parts are disjoint. Where `comm_exposed_s` and `wait_s` (or an importer's
   `comm_and_wait_s`) are given, `backward_s` and `optimizer_s` come without them. Parts that exceed the step by
   clocks' rounding are scaled to it; by more, flagged.

Across launches a share is the median of the launches' shares, all divided by their sum so that they add up to 1 again.
A part is null where any of the launches lacks it; its time is then in `other` for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import polars as pl

from vitscale.analysis.result import Shares
from vitscale.records.schema import Aggregate

PARTS = ("data", "forward", "backward", "optimizer", "comm_exposed", "wait", "comm_and_wait")
"""Names of `Shares` that step lines measure, as `<name>_s`."""

DRIFT_STEPS = 10
"""Fewest steady steps whose halves are compared."""

OVERLAP = 1.01
"""Parts that add up to more than this of the step are not disjoint: flagged."""


@dataclass(frozen=True)
class StepFigures:
    """What the steady window of one launch says. Times in seconds."""

    step_s: float
    steps: int | None
    """Counted steps; None where an imported source gives figures of a whole launch only."""
    ranks: int | None
    """Ranks that recorded any; None as above."""
    drift: float | None
    """Second half's median step over the first half's, minus 1; None below `DRIFT_STEPS` steps."""
    parts: dict[str, float]
    """Share of each measured part, before scaling."""


def step_figures(steps: pl.DataFrame) -> dict[int, StepFigures]:
    """Figures by `launch_index`; a launch without a counted step is left out."""
    rows = _counted(steps).group_by("launch_index").agg(_aggregates()).sort("launch_index").to_dicts()
    return {row["launch_index"]: _figures(row) for row in rows}


def aggregate_figures(told: Aggregate) -> StepFigures | None:
    """Figures of an imported launch that has no step lines; None where no step time is told."""
    if told.step_s is None:
        return None
    parts = {
        "data": told.data_s,
        "forward": told.forward_s,
        "backward": told.backward_compute_s,
        "optimizer": told.optimizer_s,
        "comm_and_wait": told.comm_and_wait_s,
    }
    shares_of_step = {part: value / told.step_s for part, value in parts.items() if value is not None}
    return StepFigures(told.step_s, None, None, None, shares_of_step)


def shares(launches: Sequence[StepFigures]) -> Shares:
    """Split of the step over the launches; all null where nothing was measured."""
    measured = [part for part in PARTS if launches and all(part in launch.parts for launch in launches)]
    if not measured:
        return Shares()
    split = [_closed({part: launch.parts[part] for part in measured}) for launch in launches]
    medians = {part: median(one[part] for one in split) for part in (*measured, "other")}
    total = sum(medians.values())
    return Shares(**{part: value / total for part, value in medians.items()})


def overlap(launch: StepFigures) -> float | None:
    """Sum of the parts' shares where it is more than a step can hold, else None."""
    total = sum(launch.parts.values())
    return total if total > OVERLAP else None


def _closed(parts: dict[str, float]) -> dict[str, float]:
    """Parts and `other`, adding up to 1: the remainder is never negative, parts are scaled down instead."""
    total = sum(parts.values())
    scale = max(total, 1.0)
    return {**{part: value / scale for part, value in parts.items()}, "other": max(0.0, 1 - total)}


def _counted(steps: pl.DataFrame) -> pl.DataFrame:
    """One row per launch and counted step: the slowest rank's."""
    by_step = (
        steps.filter(pl.col("window") == "steady")
        .sort("launch_index", "step", "step_s", "rank", descending=[False, False, True, False])
        .group_by("launch_index", "step", maintain_order=True)
        .agg(pl.len().alias("ranks"), pl.first("step_s", *(f"{part}_s" for part in PARTS)))
    )
    return by_step.filter(pl.col("ranks") == pl.col("ranks").max().over("launch_index"))


def _aggregates() -> list[pl.Expr]:
    half = pl.len() // 2
    return [
        pl.col("step_s").median().alias("step_s"),
        pl.len().alias("steps"),
        pl.col("ranks").first().alias("ranks"),
        pl.col("step_s").head(half).median().alias("first_half_s"),
        pl.col("step_s").tail(half).median().alias("second_half_s"),
        *((pl.col(f"{part}_s").sum() / pl.col("step_s").sum()).alias(part) for part in PARTS),
        *((pl.col(f"{part}_s").null_count() > 0).alias(f"{part}_missing") for part in PARTS),
    ]


def _figures(row: dict[str, float]) -> StepFigures:
    steps = int(row["steps"])
    return StepFigures(
        step_s=row["step_s"],
        steps=steps,
        ranks=int(row["ranks"]),
        drift=row["second_half_s"] / row["first_half_s"] - 1 if steps >= DRIFT_STEPS else None,
        parts={part: row[part] for part in PARTS if not row[f"{part}_missing"]},
    )
