"""Prediction held against published tables: the smallest counts are fitted, the larger ones predicted.

`python -m benchmarks.prediction --tables DIR` reads every table of a folder whose form it knows
(`published_tables.py`); as a benchmark without a folder it takes the tables that the package ships.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median

from benchmarks.figure import Figure
from benchmarks.published_tables import read_folder, read_single_device
from vitscale.errors import UsageError
from vitscale.predict.model import Quantiles, calibrate, predict_layouts
from vitscale.predict.score import Scored, score, summary, table
from vitscale.predict.series import Observation, Series

FITTED = (2, 3, 4)


def main() -> int:
    """Print the table of errors of a folder, worst first, and the summary by group and by number of fitted counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=Path, required=True)
    parser.add_argument("--rows", action="store_true", help="every predicted point, worst first")
    given = parser.parse_args()
    groups = read_folder(given.tables)
    scored: list[Scored] = []
    for name, series in groups.items():
        found = [point for one in series for count in FITTED for point in score(one, count, name)]
        scored += found
    if given.rows:
        print(table(sorted(scored, key=lambda one: -abs(one.error))))
    for group in (*groups, None):
        for count in (*FITTED, None):
            own = [one for one in scored if group in (None, one.table) and count in (None, one.fitted)]
            if own:
                print(f"{group or 'all':34s} fitted {count or 'any':>3}: {summary(own)}")
    for name, series in (groups | read_single_device(given.tables)).items():
        print(f"{name:34s} specs only: {specs_line([point for one in series for point in from_specs(one)])}")
    return 0


def from_specs(series: Series) -> list[tuple[Quantiles, float]]:
    """What is said and seen of a series of which nothing is shown; none where its device or model has no figures."""
    bare = tuple(Observation(one.layout, None) for one in series.observations)
    try:
        calibration = calibrate(replace(series, observations=bare))
    except UsageError:
        return []
    said = predict_layouts(calibration, [one.layout for one in series.measured])
    pairs = zip(said, series.measured, strict=True)
    return [(one, seen.step_s) for one, seen in pairs if seen.step_s is not None]


def specs_line(points: Sequence[tuple[Quantiles, float]]) -> str:
    """Errors and coverage, as text."""
    if not points:
        return "n/a: no device and timm ViT of which the catalog has figures"
    errors = [abs(said.median / seen - 1) for said, seen in points]
    cover95 = fmean(said.low95 <= seen <= said.high95 for said, seen in points)
    cover80 = fmean(said.low80 <= seen <= said.high80 for said, seen in points)
    return (
        f"{len(points):4d} points, error {median(errors):6.1%} median {max(errors):6.1%} max; "
        f"cover 95: {cover95:4.0%}, 80: {cover80:4.0%}; half-width {median(said.half_width for said, _ in points):5.1%}"
    )


def measure(short: bool) -> list[Figure]:
    """The shipped tables as figures."""
    from vitscale.predict.validate import shipped

    points = [one for series in shipped()[: 4 if short else None] for count in FITTED for one in score(series, count)]
    found = summary(points)
    command = "python -m benchmarks prediction"
    return [
        Figure("prediction: median error", f"{found.median_error:.1%}", "", "5 %", found.median_error <= 0.05, command),
        Figure(
            "prediction: 95 % coverage", f"{found.cover95:.1%}", "", "90-99 %", 0.9 <= found.cover95 <= 0.99, command
        ),
        Figure(
            "prediction: 80 % coverage", f"{found.cover80:.1%}", "", "72-88 %", 0.72 <= found.cover80 <= 0.88, command
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
