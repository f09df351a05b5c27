"""TensorBoard: event files below `trackers/tensorboard/<run_id>/launch<k>`.

Written record by record with TensorBoard's own classes: its `EventFileWriter` puts the host's name in the file name.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from vitscale.records.schema import Status
from vitscale.records.writer import make_folder
from vitscale.trackers.protocol import Described, Point, beyond


class TensorBoard:
    """See `protocol.Tracker`."""

    name: ClassVar[str] = "tensorboard"
    extra: ClassVar[str] = "vitscale[tensorboard]"
    needs: ClassVar[tuple[str, ...]] = ("tensorboard",)
    deduplicates: ClassVar[bool] = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, run: Described) -> None:
        """A new event file; what older ones of the launch hold is read back, and not written again."""
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder = make_folder(self._folder / run.run_id / f"launch{run.launch}")
        older = sorted(folder.glob("events.out.tfevents.*"))
        self._last_steps = _last_steps(older)
        path = folder / f"events.out.tfevents.{len(older):06d}.vitscale"
        self._file: BinaryIO = path.open("wb")
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        if not older:
            self._write(summary=_settings(run))
        self._file.flush()

    def log(self, points: Sequence[Point]) -> None:
        """One event per point."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        for point in beyond(points, self._last_steps):
            values = [Summary.Value(tag=name, simple_value=value) for name, value in point.values.items()]
            self._write(point.time_s, step=point.step, summary=Summary(value=values))
        self._file.flush()

    def close(self, status: Status | None) -> None:
        """End the file."""
        if status is not None:
            self._write(summary=_end(status))
        self._file.close()

    def _write(self, time_s: float | None = None, **fields: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        event = Event(wall_time=time.time() if time_s is None else time_s, **fields)
        self._records.write(event.SerializeToString())


def _last_steps(paths: Sequence[Path]) -> dict[str, int]:
    """By name, the last step that the files hold; a record that was cut off is none."""
    if not paths:
        return {}
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found: dict[str, int] = {}
    for path in paths:
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                found[value.tag] = max(event.step, found.get(value.tag, -1))
    return found


def _settings(run: Described) -> Any:
    """Hyper-parameters, for the page HPARAMS."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionStartInfo

    start = SessionStartInfo(group_name=run.name)
    for key, value in run.settings.items():
        # The format has bool, number and string: a number would make False and 0 one.
        if isinstance(value, bool):
            start.hparams[key].bool_value = value
        elif isinstance(value, int | float):
            start.hparams[key].number_value = value
        else:
            start.hparams[key].string_value = value if isinstance(value, str) else json.dumps(value)
    return _session("_hparams_/session_start_info", HParamsPluginData(session_start_info=start))


def _end(status: Status) -> Any:
    from tensorboard.plugins.hparams import api_pb2
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo

    end = SessionEndInfo(status=api_pb2.STATUS_SUCCESS if status == "ok" else api_pb2.STATUS_FAILURE)
    return _session("_hparams_/session_end_info", HParamsPluginData(session_end_info=end))


def _session(tag: str, data: Any) -> Any:
    """What `plugins.hparams.summary` makes; that module needs TensorFlow."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata

    told = metadata.create_summary_metadata(data)
    return Summary(value=[Summary.Value(tag=tag, metadata=told, tensor=metadata.NULL_TENSOR)])
