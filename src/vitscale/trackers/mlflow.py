"""MLflow: the database `trackers/mlflow/mlflow.db`, one experiment per study.

The client is used, never the fluent functions: those add user, source and git tags.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from vitscale.records.schema import Status
from vitscale.records.writer import make_folder
from vitscale.trackers.protocol import Described, Point, beyond

_KEY = "vitscale.key"
_ENDS = {"ok": "FINISHED", "killed": "KILLED"}

# Where artifacts would be, if there were any. The default is an absolute path, which tells whose home it is in.
_NOWHERE = "mlflow-artifacts:/"

# MLflow's own limits of one call.
_METRICS, _PARAMS, _PARAM_LENGTH = 1000, 100, 6000


class MLflow:
    """See `protocol.Tracker`."""

    name: ClassVar[str] = "mlflow"
    extra: ClassVar[str] = "vitscale[mlflow]"
    needs: ClassVar[tuple[str, ...]] = ("mlflow", "sqlalchemy", "alembic")
    deduplicates: ClassVar[bool] = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._client: Any = None

    def open(self, run: Described) -> None:
        """The run with this key, made where there is none; what it holds is asked for, and not written again."""
        if self._client is None:
            self._client = _client(make_folder(self._folder) / "mlflow.db")
        experiment = self._experiment(run.study)
        known = self._client.search_runs([experiment], f"tags.`{_KEY}` = '{run.key}'")
        if known:
            self._run_id = known[0].info.run_id
            self._last_steps = self._held(known[0].data.metrics)
            return
        self._last_steps = {}
        made = self._client.create_run(experiment, run_name=run.name, tags={_KEY: run.key})
        self._run_id = made.info.run_id
        self._params(run)

    def log(self, points: Sequence[Point]) -> None:
        """One row per value, a thousand at a time."""
        from mlflow.entities import Metric

        rows = [
            Metric(name, value, round(point.time_s * 1000), point.step)
            for point in beyond(points, self._last_steps)
            for name, value in point.values.items()
        ]
        for first in range(0, len(rows), _METRICS):
            self._client.log_batch(self._run_id, metrics=rows[first : first + _METRICS])

    def close(self, status: Status | None) -> None:
        """Set the run's status; `vitscale.status` has our own word for it."""
        if status is not None:
            self._client.set_tag(self._run_id, "vitscale.status", status)
            self._client.set_terminated(self._run_id, _ENDS.get(status, "FAILED"))

    def _experiment(self, study: str) -> str:
        known = self._client.get_experiment_by_name(study)
        if known is not None:
            return str(known.experiment_id)
        return str(self._client.create_experiment(study, artifact_location=_NOWHERE))

    def _params(self, run: Described) -> None:
        from mlflow.entities import Param

        params = [Param(key, str(value)[:_PARAM_LENGTH]) for key, value in run.settings.items()]
        for first in range(0, len(params), _PARAMS):
            self._client.log_batch(self._run_id, params=params[first : first + _PARAMS])

    def _held(self, names: dict[str, float]) -> dict[str, int]:
        histories = {name: self._client.get_metric_history(self._run_id, name) for name in names}
        return {name: max(metric.step for metric in history) for name, history in histories.items()}


def _client(database: Path) -> Any:
    # Read when the library is imported, and the only way to tell it.
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from mlflow.tracking import MlflowClient

    # Importing it sets its level to INFO, and its handler writes into the live table.
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    uri = f"sqlite:///{database.resolve()}"
    if not database.exists():
        # The client would make the tables too, with the working folder in the experiment `Default`.
        SqlAlchemyStore(uri, _NOWHERE)
    return MlflowClient(uri)
