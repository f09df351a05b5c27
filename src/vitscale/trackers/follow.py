"""Following a launch while it runs: new lines of its records go to the trackers, from a thread of the tool's process.

Training never waits for a tracker and never fails with one: a tracker that raises is reported once and left out.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from vitscale.config.labels import flatten
from vitscale.config.runspec import RunSpec
from vitscale.errors import VitscaleError
from vitscale.records.launches import read_document
from vitscale.records.schema import SCHEMA_VERSION, Manifest, Status
from vitscale.records.writer import MANIFEST, RUN
from vitscale.trackers.lines import read_batch
from vitscale.trackers.positions import Positions
from vitscale.trackers.protocol import Described, Tracker

Report = Callable[[str], None]

RESOLVED = "resolved.json"


class Follower:
    """One launch and the trackers that hear of it, between `start` and `stop`; also a context manager.

    Args:
        results_folder: of the study.
        launch_folder: `runs/<run_id>/launch<k>` in it; need not be there yet.
        trackers: from `open_trackers`. One that raises is taken out of this list, so that no later launch tries it.
        report: hears one line for each tracker left out; the log, where it is None.
        interval_s: between two looks.
    """

    def __init__(
        self,
        results_folder: Path,
        launch_folder: Path,
        trackers: list[Tracker],
        report: Report | None = None,
        interval_s: float = 1.0,
    ) -> None:
        self._folder = launch_folder
        self._trackers = trackers
        self._report = report or logging.getLogger(__name__).warning
        self._interval_s = interval_s
        self._feeds = [_Feed(results_folder, launch_folder, tracker) for tracker in trackers]
        self._stopping = threading.Event()
        # A daemon: a library that hangs must not keep the command from ending.
        self._thread = threading.Thread(target=self._follow, name="vitscale-trackers", daemon=True)

    def __enter__(self) -> Follower:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to look; nothing is imported or written for no trackers."""
        if self._feeds:
            self._thread.start()

    def stop(self, timeout_s: float = 60.0) -> None:
        """Log what is left and end. A launch without a manifest stays open, to be gone on with."""
        self._stopping.set()
        if not self._feeds:
            return
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._report(f"the trackers are not done after {timeout_s:g} s; what is left will be logged the next time")

    def _follow(self) -> None:
        while True:
            # Both are looked at before reading: what they close is on disk by then.
            last = self._stopping.is_set()
            ended = (self._folder / MANIFEST).exists()
            self._look()
            if last or ended:
                break
            self._stopping.wait(self._interval_s)
        self._each(_Feed.end)

    def _look(self) -> None:
        self._each(_Feed.advance)

    def _each(self, do: Callable[[_Feed], None]) -> None:
        for feed in list(self._feeds):
            try:
                do(feed)
            except Exception as error:  # noqa: BLE001  a library's error, whatever it is, must not end training
                self._feeds.remove(feed)
                if feed.tracker in self._trackers:
                    self._trackers.remove(feed.tracker)
                self._report(f"tracker `{feed.tracker.name}` is left out: {_told(error)}; training goes on")


def catch_up(results_folder: Path, trackers: list[Tracker], report: Report | None = None) -> None:
    """Bring launches to their end that a tracker began and never closed, because the tool's process died before."""
    begun: dict[str, None] = {}
    for tracker in list(trackers):
        try:
            positions = Positions.read(results_folder, tracker.name)
        except VitscaleError as error:
            trackers.remove(tracker)
            (report or logging.getLogger(__name__).warning)(f"tracker `{tracker.name}` is left out: {error.message}")
        else:
            begun |= dict.fromkeys(launch for launch, one in positions.launches.items() if not one.closed)
    for launch in begun:
        if (results_folder / launch / MANIFEST).exists():
            with Follower(results_folder, results_folder / launch, trackers, report):
                pass


class _Feed:
    """One tracker in one launch."""

    def __init__(self, results: Path, folder: Path, tracker: Tracker) -> None:
        self._results, self._folder, self.tracker = results, folder, tracker
        self._launch = folder.relative_to(results).as_posix()
        self._spec: RunSpec | None = None
        self._positions: Positions | None = None

    def advance(self) -> None:
        """Log what is new; nothing before the launch has its `run.json`."""
        if self._spec is None and not self._open():
            return
        while self._batch():
            pass

    def end(self) -> None:
        """Close the launch with the status of its manifest, where it has one."""
        if self._spec is None or self._positions is None or self._positions.of(self._launch).closed:
            return
        status = self._status()
        self.tracker.close(status)
        if status is not None:
            ended = self._positions.of(self._launch).model_copy(update={"closed": True})
            self._positions.save(self._launch, ended)

    def _open(self) -> bool:
        path = self._folder / RUN
        if not path.exists():
            return False
        self._spec = RunSpec.model_validate_json(path.read_bytes())
        self._began_s = path.stat().st_mtime
        self._positions = Positions.read(self._results, self.tracker.name)
        progress = self._positions.of(self._launch)
        if not progress.closed:
            self._positions.save(self._launch, progress)
            self.tracker.open(self._described(self._spec, progress.key))
        return True

    def _described(self, spec: RunSpec, key: str) -> Described:
        study = (read_document(self._results, self._results / RESOLVED, 1) or {}).get("name", "vitscale")
        launch = int(self._folder.name.removeprefix("launch"))
        return Described(str(study), self._folder.parent.name, launch, key, settings(spec))

    def _batch(self) -> bool:
        """Log one chunk; whether there was any. `advance` has opened both."""
        assert self._spec is not None
        assert self._positions is not None
        before = self._positions.of(self._launch)
        if before.closed:
            return False
        points, after = read_batch(self._folder, self._spec, self._began_s, before)
        if after == before:
            return False
        if self.tracker.deduplicates:
            if points:
                self.tracker.log(points)
            self._positions.save(self._launch, after)
        else:
            # The other way round a crash between the two would log the batch again.
            self._positions.save(self._launch, after)
            if points:
                self.tracker.log(points)
        return True

    def _status(self) -> Status | None:
        document = read_document(self._results, self._folder / MANIFEST, SCHEMA_VERSION)
        return None if document is None else Manifest.model_validate(document).status


def settings(spec: RunSpec) -> dict[str, object]:
    """The RunSpec with dotted keys, as hyper-parameters. A path through the home folder is told from `~`."""
    home = str(Path.home())
    flat = flatten(spec.model_dump(mode="json"))
    return {key: value.replace(home, "~") if isinstance(value, str) else value for key, value in flat.items()}


def _told(error: Exception) -> str:
    """First line of an error, without more of it than a terminal line holds."""
    text = error.message if isinstance(error, VitscaleError) else f"{type(error).__name__}: {error}"
    return text.splitlines()[0][:200] if text else type(error).__name__
