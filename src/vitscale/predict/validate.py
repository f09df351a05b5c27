"""Predictions held against measurements: the package's own tables of published figures, a user's table or study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from vitscale.errors import UsageError
from vitscale.predict.read import of_table, read
from vitscale.predict.score import Scored, Summary, noise_floor, score, summary
from vitscale.predict.series import Series

FITTED = (2, 3, 4)
"""Smallest world sizes that are shown of a published series, each in turn."""


@dataclass(frozen=True)
class Validation:
    """What was hidden and predicted."""

    points: tuple[Scored, ...]
    """Worst first."""
    by_table: dict[str, Summary]
    whole: Summary
    noise_floor: float | None
    """Median difference between two runs of one configuration, as a fraction; None where nothing was run twice."""
    short: tuple[str, ...]
    """Series with too few world sizes for this, by name."""


def shipped() -> list[Series]:
    """Every series of the package's tables; each row's source stands in its column `source`."""
    return [one for series in shipped_tables().values() for one in series]


def shipped_tables() -> dict[str, list[Series]]:
    """The package's tables by name."""
    found = {}
    for entry in sorted(files("vitscale.predict").joinpath("tables").iterdir(), key=lambda one: one.name):
        if entry.name.endswith(".csv"):
            with as_file(entry) as path:
                found[path.stem] = of_table(path)
    return found


def validate(paths: Sequence[Path] = ()) -> Validation:
    """Hide the larger world sizes, predict them, compare. Of a results folder the largest one only.

    Args:
        paths: tables or results folders; none are the tables that the package ships.

    Raises:
        UsageError: nothing has the world sizes that this needs.
    """
    points: list[Scored] = []
    short = []
    names = [path.name for path in paths]
    sources = {path.name if names.count(path.name) == 1 else str(path): (read(path), path.is_dir()) for path in paths}
    sources = sources or {name: (series, False) for name, series in shipped_tables().items()}
    for name, (series, own) in sources.items():
        for one in series:
            found = _hidden(one, name, own)
            points += found
            short += [] if found else [one.name]
    if not points:
        raise UsageError(
            "no series has two measured world sizes or more beyond what a fit needs",
            "a table needs 3 world sizes in a series, a study 2",
        )
    points.sort(key=lambda one: -abs(one.error))
    tables = {name: [one for one in points if one.table == name] for name in dict.fromkeys(one.table for one in points)}
    floor = noise_floor([one for series, _ in sources.values() for one in series])
    return Validation(
        tuple(points), {name: summary(own) for name, own in tables.items()}, summary(points), floor, tuple(short)
    )


def _hidden(series: Series, name: str, own: bool) -> list[Scored]:
    """Of the user's own study the largest world size is left out, of a table all beyond the first two, three, four."""
    sizes = len({one.layout.world_size for one in series.measured})
    counts = (sizes - 1,) if own else FITTED
    return [point for count in counts if count for point in score(series, count, name)]


def document(found: Validation) -> dict[str, Any]:
    """As JSON."""
    return {
        "schema_version": 1,
        "summary": found.whole.document(),
        "tables": {name: one.document() for name, one in found.by_table.items()},
        "noise_floor": found.noise_floor,
        "points": [one.document() for one in found.points],
        "series_too_short": list(found.short),
    }
