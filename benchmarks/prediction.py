"""Prediction held against published tables: the smallest counts are fitted, the larger ones predicted.

`python -m benchmarks.prediction --tables DIR` reads every table of a folder whose form it knows
(`published_tables.py`); as a benchmark without a folder it takes the tables that the package ships.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.figure import Figure
from benchmarks.published_tables import read_folder, read_single_device
from vitscale.predict.score import Summary, from_sheets, score, sheet_summary, summary, table
from vitscale.predict.validate import ALONE, FITTED, shipped_tables


def main() -> int:
    """Print the table of errors of a folder, worst first, and the summary by group and by number of fitted counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=Path, required=True)
    parser.add_argument("--rows", action="store_true", help="every predicted point, worst first")
    given = parser.parse_args()
    left_out: list[str] = []
    groups = read_folder(given.tables, left_out)
    shown = (ALONE, *FITTED)
    scored = [
        point
        for name, series in groups.items()
        for one in series
        for count in shown
        for point in score(one, count, name)
    ]
    if given.rows:
        print(table(sorted(scored, key=lambda one: -abs(one.error))))
    for group in (*groups, None):
        for counts in (*((count,) for count in shown), FITTED):
            own = [one for one in scored if group in (None, one.table) and one.fitted in counts]
            words = f"shown {'2 to 4' if counts == FITTED else counts[0]}"
            print(f"{group or 'all':34s} {words:12s} {summary(own) if own else 'n/a: no larger world size is left'}")
    for name, series in (groups | read_single_device(given.tables)).items():
        told = sheet_summary([pair for one in series for pair in from_sheets(one)])
        print(f"{name:34s} specs only: {told or 'n/a: no device and timm ViT of which the catalog has figures'}")
    for line in left_out:
        print(f"left out: {line}")
    return 0


def measure(short: bool) -> list[Figure]:
    """The issue's figures on the shipped tables: by table, over all, and from data sheets only."""
    tables = {name: series[:: 8 if short else 1] for name, series in shipped_tables().items()}
    points = {
        name: [point for one in series for count in FITTED for point in score(one, count, name)]
        for name, series in tables.items()
    }
    every = [point for own in points.values() for point in own]
    found = [
        figure for name, own in points.items() for figure in _errors(name, summary(own), *_TARGETS.get(name, _OTHERS))
    ]
    bare = sheet_summary([pair for series in tables.values() for one in series for pair in from_sheets(one)])
    if bare is not None:
        met = bare.median_error <= _SHEETS
        told = f"{bare.points} points, maximum {bare.largest_error:.1%}"
        found.append(
            Figure("prediction: from data sheets only", f"{bare.median_error:.1%}", told, "20 %", met, _COMMAND)
        )
    return [*found, *_intervals(summary(every))]


_COMMAND = "python -m benchmarks prediction"
_OTHERS = (0.05, 0.15)
_TARGETS = {"vit_deepspeed": (0.03, 0.12)}
"""Median and largest error."""
_SHEETS = 0.20


def _errors(name: str, found: Summary, middle: float, most: float) -> list[Figure]:
    gain, low, high = found.gain
    better = low is not None and low > 0
    spread = f"{low:.1%} to {high:.1%}" if low is not None and high is not None else "n/a: too few series"
    told = f"{found.points} points"
    return [
        Figure(f"prediction, {name}: median error", f"{found.median_error:.1%}", told, f"{middle:.0%}",
               found.median_error <= middle, _COMMAND),
        Figure(f"prediction, {name}: largest error", f"{found.largest_error:.1%}", told, f"{most:.0%}",
               found.largest_error <= most, _COMMAND),
        Figure(f"prediction, {name}: better than both baselines by", f"{gain:.1%}", spread, "> 0", better, _COMMAND),
        Figure(f"prediction, {name}: interval score", f"{found.score:.3f}", f"baseline {found.baseline_score:.3f}",
               "below the baseline's", found.score < found.baseline_score, _COMMAND),
        Figure(f"prediction, {name}: half-width", f"{found.half_width:.1%}", told, "12 %",
               found.half_width <= 0.12, _COMMAND),
    ]  # fmt: skip


def _intervals(found: Summary) -> list[Figure]:
    return [
        Figure("prediction: 95 % coverage", f"{found.cover95:.1%}", f"{found.points} points", "90-99 %",
               0.9 <= found.cover95 <= 0.99, _COMMAND),
        Figure("prediction: 80 % coverage", f"{found.cover80:.1%}", f"{found.points} points", "72-88 %",
               0.72 <= found.cover80 <= 0.88, _COMMAND),
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
