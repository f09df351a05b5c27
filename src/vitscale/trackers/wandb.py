"""Weights & Biases, offline: `trackers/wandb/wandb/offline-run-*`, for `wandb sync` to send.

Everything that the library would find out by itself is answered here or switched off: arguments, program, host, user,
git, code, packages, machine, console.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from vitscale.config.runspec import slug
from vitscale.records.schema import Status
from vitscale.records.writer import make_folder
from vitscale.trackers.protocol import Described, Point


class WandB:
    """See `protocol.Tracker`."""

    name: ClassVar[str] = "wandb"
    extra: ClassVar[str] = "vitscale[wandb]"
    needs: ClassVar[tuple[str, ...]] = ("wandb",)
    # An offline run is only ever added to, and cannot be asked what it holds.
    deduplicates: ClassVar[bool] = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, run: Described) -> None:
        """A new offline folder; after a crash one with the same run id, which the server takes as the same run."""
        os.environ["WANDB_ERROR_REPORTING"] = "false"
        import wandb

        make_folder(self._folder)
        self._run = wandb.init(settings=wandb.Settings(**_settings(self._folder, run)), config=dict(run.settings))
        # Its own logs tell where they are, and so whose home folder that is.
        shutil.rmtree(self._run.settings.log_dir, ignore_errors=True)

    def log(self, points: Sequence[Point]) -> None:
        """One history row per step."""
        for step, row in _rows(points).items():
            self._run.log(row, step=step)

    def close(self, status: Status | None) -> None:
        """Finish; W&B knows success and failure only, `vitscale_status` has our word for it."""
        if status is not None:
            self._run.summary["vitscale_status"] = status
        self._run.finish(exit_code=0 if status in ("ok", None) else 1)


def _rows(points: Sequence[Point]) -> dict[int, dict[str, float]]:
    """A step's values and those of the evaluation after it share a row: W&B takes each step once."""
    rows: dict[int, dict[str, float]] = {}
    for point in points:
        rows.setdefault(point.step, {"_timestamp": point.time_s}).update(point.values)
    return rows


def _settings(folder: Path, run: Described) -> dict[str, Any]:
    earlier = len(list(folder.glob(f"wandb/offline-run-*-{run.key}*")))
    ours = {
        "mode": "offline",
        "root_dir": str(folder),
        "project": slug(run.study),
        "run_id": run.key,
        "run_name": run.name,
        "run_group": run.run_id,
        # Folders are named by the second: one opened again within it would be written over.
        "x_sync_dir_suffix": str(earlier) if earlier else "",
        # A run of its own, whatever else this process has open.
        "reinit": "create_new",
        "silent": True,
        "symlink": False,
    }
    off = {
        "x_disable_meta": True,
        "x_disable_stats": True,
        "x_disable_machine_info": True,
        "x_disable_viewer": True,
        "x_save_requirements": False,
        "save_code": False,
        "disable_code": True,
        "disable_git": True,
        "disable_job_creation": True,
        "console": "off",
    }
    # Empty is an answer; None would be found out, from the environment too.
    blank = dict.fromkeys(
        ("host", "username", "email", "program", "program_relpath", "program_abspath", "docker", "run_notes"), ""
    )
    return {**ours, **off, **blank, "run_tags": ()}
