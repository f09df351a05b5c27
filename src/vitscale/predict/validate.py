"""Predictions held against measurements: the package's own tables of published figures, a user's table or study."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, TypeVar

from vitscale.errors import UsageError
from vitscale.predict.priors import priors
from vitscale.predict.read import of_table, read
from vitscale.predict.score import (
    Scored,
    SheetSummary,
    Summary,
    from_sheets,
    noise_floor,
    score,
    sheet_summary,
    summary,
)
from vitscale.predict.series import Series

FITTED = (2, 3, 4)
"""Smallest world sizes that are shown of a published series, each in turn."""
ALONE = 1
"""From one world size how a step changes with it is the priors' alone: shown too, and summed up apart."""


K = TypeVar("K", str, tuple[str, int])


@dataclass(frozen=True)
class Noticed:
    """What was assumed or remarked of series of a table."""

    table: str
    text: str
    series: tuple[str, ...]
    """Those that it was said of, by name."""
    of: int
    """Series of the table."""


@dataclass(frozen=True)
class Validation:
    """What was hidden and predicted."""

    points: tuple[Scored, ...]
    """Worst first."""
    by_table: dict[str, Summary]
    """Of a table without those that were shown one world size, unless there are no others; `whole` likewise."""
    whole: Summary
    by_shown: dict[tuple[str, int], Summary]
    """By table and number of world sizes that were shown."""
    from_sheets: SheetSummary | None
    """The same series with nothing shown; None where no device and model has figures."""
    noise_floor: float | None
    """Median difference between two runs of one configuration, as a fraction; None where nothing was run twice."""
    short: tuple[str, ...]
    """Series with too few world sizes for this, by name."""
    noticed: tuple[Noticed, ...]
    """By table, what is said of most series first."""


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
            "no series has two measured world sizes or more", "one is shown, and the larger ones are hidden"
        )
    points.sort(key=lambda one: -abs(one.error))
    studies = {name for name, (_, own) in sources.items() if own}
    several = [one for one in points if one.fitted != ALONE or one.table in studies] or points
    by_table = _grouped(several, lambda one: one.table)
    every = [one for series, _ in sources.values() for one in series]
    return Validation(
        tuple(points),
        {name: summary(own) for name, own in by_table.items()},
        summary(several),
        {key: summary(own) for key, own in sorted(_grouped(points, lambda one: (one.table, one.fitted)).items())},
        sheet_summary([pair for one in every for pair in from_sheets(one)]),
        noise_floor(every),
        tuple(short),
        tuple(one for name, (series, _) in sources.items() for one in _noticed(name, series)),
    )


def _noticed(name: str, series: Sequence[Series]) -> list[Noticed]:
    found: dict[str, list[str]] = {}
    for one in series:
        reference = max((seen.layout.micro_batch for seen in one.observations), default=1.0)
        for text in (*one.remarks, *priors(one, reference).assumptions):
            found.setdefault(text, []).append(one.name)
    told = [Noticed(name, text, tuple(names), len(series)) for text, names in found.items()]
    return sorted(told, key=lambda one: -len(one.series))


def _grouped(points: Sequence[Scored], key: Callable[[Scored], K]) -> dict[K, list[Scored]]:
    found: dict[K, list[Scored]] = {}
    for one in points:
        found.setdefault(key(one), []).append(one)
    return found


def _hidden(series: Series, name: str, own: bool) -> list[Scored]:
    """Of the user's own study the largest world size is left out, of a table all beyond the first one to four."""
    sizes = len({one.layout.world_size for one in series.measured})
    counts = (sizes - 1,) if own else (ALONE, *FITTED)
    return [point for count in counts if count for point in score(series, count, name)]


def document(found: Validation) -> dict[str, Any]:
    """As JSON."""
    return {
        "schema_version": 1,
        "summary": found.whole.document(),
        "tables": {name: one.document() for name, one in found.by_table.items()},
        "by_shown": [
            {"table": name, "shown": shown, **one.document()} for (name, shown), one in found.by_shown.items()
        ],
        "from_sheets": None if found.from_sheets is None else asdict(found.from_sheets),
        "noise_floor": found.noise_floor,
        "points": [one.document() for one in found.points],
        "series_too_short": list(found.short),
        "assumptions": [asdict(one) for one in found.noticed],
    }
