"""trackio: the database `trackers/trackio/<study>.db`, local, no Space.

Written through its storage class: `trackio.init` asks the Hub who the user is, writes that name into every run's
configuration, and samples the machine.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from vitscale.config.runspec import slug
from vitscale.records.schema import Status
from vitscale.records.writer import make_folder
from vitscale.trackers.protocol import Described, Point


class Trackio:
    """See `protocol.Tracker`."""

    name: ClassVar[str] = "trackio"
    extra: ClassVar[str] = "vitscale[trackio]"
    needs: ClassVar[tuple[str, ...]] = ("trackio",)
    deduplicates: ClassVar[bool] = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, run: Described) -> None:
        """Nothing is stored before the first point: trackio makes a run with its first row."""
        make_folder(self._folder)
        self._run = run

    def log(self, points: Sequence[Point]) -> None:
        """One row per point; a row whose id is there already is ignored."""
        self._storage().bulk_log(
            project=slug(self._run.study),
            run=self._run.name,
            run_id=self._run.key,
            metrics_list=[dict(point.values) for point in points],
            steps=[point.step for point in points],
            timestamps=[_iso(point.time_s) for point in points],
            log_ids=[f"{self._run.key}-{point.kind}-{point.step}" for point in points],
            config=dict(self._run.settings),
        )

    def close(self, status: Status | None) -> None:
        """Nothing to end: trackio keeps no status of a run."""

    def _storage(self) -> Any:
        from trackio import sqlite_storage

        # Where it writes is fixed when it is imported; elsewhere that is a folder below the user's home.
        sqlite_storage.TRACKIO_DIR = self._folder
        return sqlite_storage.SQLiteStorage


def _iso(time_s: float) -> str:
    return datetime.datetime.fromtimestamp(time_s, datetime.UTC).isoformat()
