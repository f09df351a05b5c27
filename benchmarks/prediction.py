"""Prediction held against published tables: the smallest counts are fitted, the larger ones predicted.

`python -m benchmarks.prediction --tables DIR` reads every table of a folder whose form it knows (`published_tables.py`); as a
benchmark without a folder it takes the tables that the package ships.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.figure import Figure
from benchmarks.published_tables import read_folder
from vitscale.predict.score import Scored, score, summary, table

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
    for name in (*groups, None):
        for count in (*FITTED, None):
            own = [one for one in scored if name in (None, one.table) and count in (None, one.fitted)]
            if own:
                print(f"{name or 'all':34s} fitted {count or 'any':>3}: {summary(own)}")
    return 0


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
