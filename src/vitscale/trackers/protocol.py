"""What a tracker is. A further one is a file with one such class and an entry point of the group `vitscale.trackers`.

A tracker gets what is in this file and nothing else: it looks at no environment, argument, host, user or code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from vitscale.records.schema import Status


class Point(NamedTuple):
    """Values of one optimizer step: of the step itself, or of an evaluation after it."""

    step: int
    """Optimizer step of the launch, from 0."""
    time_s: float
    """When it was: seconds since the epoch, by the step times of the launch; not when the line was read."""
    values: Mapping[str, float]
    """By name: `train/loss`, `train/step_s`, `eval/accuracy`, …; all of one kind, finite."""

    @property
    def kind(self) -> str:
        """`train` or `eval`."""
        return next(iter(self.values)).partition("/")[0]


@dataclass(frozen=True)
class Described:
    """One launch, as its trackers see it."""

    study: str
    """Name of the study."""
    run_id: str
    """The run."""
    launch: int
    """Number of the launch of this run, from 0."""
    key: str
    """16 hex digits of this launch in this results folder, the same whenever it is opened again."""
    settings: Mapping[str, Any]
    """The RunSpec with dotted keys."""

    @property
    def name(self) -> str:
        """`<run_id>/launch<k>`."""
        return f"{self.run_id}/launch{self.launch}"


class Tracker(Protocol):
    """Where steps and evaluations of launches go, one launch after the other. Everything may raise."""

    name: ClassVar[str]
    """As in the study, and the folder below `trackers/`."""
    extra: ClassVar[str]
    """What `pip install` is given to get the library."""
    needs: ClassVar[tuple[str, ...]]
    """Modules that have to be there. They are imported at `open`, not before."""
    deduplicates: ClassVar[bool]
    """Whether a point logged again after a crash is there once. If not, a crash may cost the points in flight."""

    def __init__(self, folder: Path) -> None:
        """Remember the folder, and touch nothing."""

    def open(self, run: Described) -> None:
        """Begin a launch, or go on with it where it was left."""

    def log(self, points: Sequence[Point]) -> None:
        """Add points, by rising step; kept when this returns, as far as the library can promise it."""

    def close(self, status: Status | None) -> None:
        """End the launch; None leaves it unfinished, to be opened again."""


def beyond(points: Iterable[Point], last_steps: Mapping[str, int]) -> list[Point]:
    """The points, without values whose name is held already at that step or a later one."""
    left = []
    for point in points:
        values = {name: value for name, value in point.values.items() if point.step > last_steps.get(name, -1)}
        if values:
            left.append(point._replace(values=values))
    return left
