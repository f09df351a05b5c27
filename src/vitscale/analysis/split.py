"""What a launch's step lines say: the step, its parts, its drift, and each rank's share in it.

Definitions, for one launch:

1. A step of the steady window is counted where every rank recorded it (a launch that was cut off loses its last steps).
2. Its time is the largest `step_s` over the ranks; `step_s` of the launch is the median over the counted steps.
3. The share of a part is its sum over the counted steps of all ranks over the sum of their `step_s`: the mean rank.
   Collectives hold the ranks together, so their steps are equally long, but not equally filled: where one computes,
   the others wait. No single rank's split tells that; what each rank did is in `by_rank`.
4. Contract with the worker: parts are disjoint. Where `comm_exposed_s` and `wait_s` (or an importer's
   `comm_and_wait_s`) are given, `backward_s` and `optimizer_s` come without them. `other` is what is left, and negative
   where the parts exceed the step; nothing is scaled.

Across launches a share is the mean of the launches' shares: means add up to 1 as each launch does, medians do not.
A part is null where any of the launches lacks it; its time is then in `other` for all of them. One that some step line
has below 0 is null in that launch: no clock measures such a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

import polars as pl

from vitscale.analysis.result import Shares
from vitscale.records.schema import Aggregate

PARTS = ("data", "forward", "backward", "optimizer", "comm_exposed", "wait", "comm_and_wait", "launch_gap")
"""Names of `Shares` that step lines measure, as `<name>_s`."""

MEASURED = tuple(part for part in PARTS if part != "comm_and_wait")
"""Parts that vitscale's own ranks measure."""

BESIDE = ("comm", "comm_overlapped", "late")
"""Times in step lines that are no part of the step."""

DRIFT_STEPS = 10
"""Fewest steady steps whose halves are compared."""

OPEN_SHARE = 0.02
"""More of the step than this that no part accounts for, or that parts have too much: flagged."""


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
    """Share of each measured part."""
    beside: dict[str, float] = field(default_factory=dict)
    """The same of `BESIDE`."""
    by_rank: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """The same of both by rank, from 0, and `images` per step; empty where a rank below another left no records."""
    negative: tuple[str, ...] = ()
    """Parts and the like that are in none of these, since some step line has less than 0 of them."""

    @property
    def other(self) -> float:
        """Share that no part accounts for; negative where parts exceed the step."""
        return 1 - sum(self.parts.values())

    @property
    def split(self) -> bool:
        """Whether every part that a rank measures is there, so that `other` should be nothing."""
        return all(part in self.parts for part in MEASURED)


def step_figures(steps: pl.DataFrame) -> dict[int, StepFigures]:
    """Figures by `launch_index`; a launch without a counted step is left out."""
    steady = steps.lazy().filter(pl.col("window") == "steady")
    counted, uncounted = _by_step(steady)
    windows = {row["launch_index"]: row for row in _windows(counted).to_dicts()}
    negative = _negative(steps)
    ranks: dict[int, list[dict[str, float]]] = {index: [] for index in windows}
    for row in _rank_sums(steady, uncounted).to_dicts():
        ranks[int(row["launch_index"])].append(row)
    return {
        index: _figures(window, ranks[index], tuple(name for name, launches in negative.items() if index in launches))
        for index, window in windows.items()
    }


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
    means = {part: fmean(launch.parts[part] for launch in launches) for part in measured}
    return Shares(**means, other=1 - sum(means.values()))


def overlapped(launches: Sequence[StepFigures]) -> float | None:
    """Communication that something hides over all communication; None where none was timed."""
    told = [launch.beside for launch in launches]
    total = sum(one.get("comm", 0.0) for one in told)
    hidden = [one.get("comm_overlapped") for one in told]
    if not total or None in hidden:
        return None
    return sum(one for one in hidden if one is not None) / total


def _by_step(steady: pl.LazyFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """One row per launch and step, with the slowest rank's time: steps that every rank recorded, and the others."""
    steps = (
        steady.group_by("launch_index", "step")
        .agg(pl.len().alias("ranks"), pl.max("step_s"))
        .with_columns(whole=pl.col("ranks") == pl.col("ranks").max().over("launch_index"))
        .collect()
    )
    return steps.filter("whole"), steps.filter(~pl.col("whole"))


def _windows(counted: pl.DataFrame) -> pl.DataFrame:
    """One row per launch."""
    half = pl.len() // 2
    return (
        counted.sort("launch_index", "step")
        .group_by("launch_index", maintain_order=True)
        .agg(
            pl.col("step_s").median().alias("step_s"),
            pl.len().alias("steps"),
            pl.first("ranks"),
            pl.col("step_s").head(half).median().alias("first_half_s"),
            pl.col("step_s").tail(half).median().alias("second_half_s"),
        )
    )


_AT_ONCE = 4
"""Columns that are added up together: of millions of lines a copy of all would take as much memory as the records."""


def _rank_sums(steady: pl.LazyFrame, uncounted: pl.DataFrame) -> pl.DataFrame:
    """One row per launch and rank: sums over its counted steps; null where any step lacks the time."""
    if uncounted.height:
        steady = steady.join(uncounted.lazy(), on=("launch_index", "step"), how="anti")
    whole = [
        pl.when(pl.col(f"{name}_s").null_count() == 0).then(pl.col(f"{name}_s").sum()).alias(name)
        for name in (*PARTS, *BESIDE)
    ]
    columns = [pl.sum("step_s"), pl.mean("images"), *whole]
    tables = [
        steady.group_by("launch_index", "rank").agg(some).sort("launch_index", "rank").collect()
        for some in (columns[first : first + _AT_ONCE] for first in range(0, len(columns), _AT_ONCE))
    ]
    return pl.concat([tables[0], *(table.drop("launch_index", "rank") for table in tables[1:])], how="horizontal")


TOGETHER = {name: both for both in (("forward", "backward"), ("comm_exposed", "wait")) for name in both}
"""Parts of which one without the other would be taken for the whole of computing, or of communication and waiting."""


def _negative(steps: pl.DataFrame) -> dict[str, list[int]]:
    """Part, or what is beside them -> launches of which a steady step has less than 0 of it."""
    steady = pl.col("window") == "steady"
    some = [
        pl.col("launch_index").filter(steady & (pl.col(f"{name}_s") < 0)).unique().implode().alias(name)
        for name in (*PARTS, *BESIDE)
    ]
    return steps.select(some).row(0, named=True)


def _figures(window: dict[str, float], ranks: list[dict[str, float]], negative: tuple[str, ...]) -> StepFigures:
    steps = int(window["steps"])
    total_s = sum(rank["step_s"] for rank in ranks)
    untold = {one for name in negative for one in TOGETHER.get(name, (name,))}
    known = [name for name in (*PARTS, *BESIDE) if name not in untold]
    told = [name for name in known if all(rank[name] is not None for rank in ranks)]
    means = {name: sum(rank[name] for rank in ranks) / total_s for name in told}
    whole = [rank["rank"] for rank in ranks] == list(range(len(ranks)))
    by_rank = {name: tuple(rank[name] / rank["step_s"] for rank in ranks) for name in told if whole}
    if whole and all(rank["images"] is not None for rank in ranks):
        by_rank["images"] = tuple(rank["images"] for rank in ranks)
    return StepFigures(
        step_s=window["step_s"],
        steps=steps,
        ranks=int(window["ranks"]),
        drift=window["second_half_s"] / window["first_half_s"] - 1 if steps >= DRIFT_STEPS else None,
        parts={name: means[name] for name in told if name in PARTS},
        beside={name: means[name] for name in told if name in BESIDE},
        by_rank=by_rank,
        negative=negative,
    )
