"""How the tool's process of rank 0 and those of the other ranks talk: by small files in the results folder.

Rank 0 gives orders, each of which replaces the one before; every other rank reports what it has seen and how its worker
ended. A process is known by a random word of its own: an order of an earlier start is for nobody.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vitscale.records.writer import make_folder, write_json

Kind = Literal["start", "signal", "end", "over"]


class Order(NamedTuple):
    """What the other ranks have to do."""

    number: int
    kind: Kind
    what: str
    """Name of the round to start a worker for, or of the signal to send to it."""
    words: list[str]
    """Whom it is for."""


GONE = -1


class Report(NamedTuple):
    """How far a rank is."""

    word: str
    """The process's own."""
    order: int
    """Number of the last order carried out; 0 before the first, `GONE` where the process has ended."""
    code: int | None
    """Exit status of its worker, negative for a signal; null while there is none or it works."""
    host: str = ""
    """Name of its host."""
    oom_kills: int = 0
    """How often the kernel there has ended a process for want of memory, since this one began."""


class Board:
    """The files of one start."""

    def __init__(self, results: Path) -> None:
        self._folder = results / "rounds" / "ranks"

    def clear(self) -> None:
        """Take away what an earlier start left; whoever is here reports again."""
        for path in self._folder.glob("*.json"):
            path.unlink(missing_ok=True)

    def show_life(self) -> None:
        """Be heard of, as rank 0."""
        (make_folder(self._folder) / _LEAD).touch()

    def life(self) -> int | None:
        """What changes as long as rank 0 is there."""
        with contextlib.suppress(OSError):
            return (self._folder / _LEAD).stat().st_mtime_ns
        return None

    def publish(self, order: Order) -> None:
        """Replace the order."""
        write_json(make_folder(self._folder) / "order.json", order._asdict())

    def order(self) -> Order | None:
        """The order that stands."""
        document = _read(self._folder / "order.json")
        return None if document is None else Order(**document)

    def report(self, rank: int, report: Report) -> None:
        """Replace a rank's report."""
        write_json(make_folder(self._folder) / _name(rank), report._asdict())

    def has_report(self, rank: int) -> bool:
        """Whether a rank's report is there."""
        return (self._folder / _name(rank)).exists()

    def reports(self, world_size: int) -> dict[int, Report]:
        """Those of the ranks that have come, rank 0 aside."""
        found = {rank: _read(self._folder / _name(rank)) for rank in range(1, world_size)}
        return {rank: Report(**document) for rank, document in found.items() if document is not None}


_LEAD = "lead"


def _name(rank: int) -> str:
    return f"rank{rank:03d}.json"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        document: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return document
