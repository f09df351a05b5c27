"""Training one run to its end, going on from its newest checkpoint, also where ranks end on the way."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

from vitscale.config.runspec import RunSpec
from vitscale.config.study import Study
from vitscale.config.training import in_steps
from vitscale.errors import (
    CheckpointError,
    DivergedError,
    HangError,
    Interrupted,
    LeftRunning,
    MemoryExceeded,
    SetupError,
    UsageError,
    VitscaleError,
    WorkerError,
)
from vitscale.hardware.probe import Machine
from vitscale.launch.outcome import Launcher, Queue, RoundEnd
from vitscale.records import checkpoint
from vitscale.records.launches import read_launches
from vitscale.records.round import Checkpointing, Round
from vitscale.records.writer import MANIFEST
from vitscale.study.follow import Follow, Observer
from vitscale.study.rounds import bury, close_launch, make_round, next_entry, next_round

CHECKPOINTS, EXPORT = "checkpoints", "export"
_AGAIN = "the same command goes on from the newest checkpoint"
_PASSING = ("failed", "killed", "timeout")
"""Ends that a further start need not meet again, where no rank said what it was."""
_ERRORS: dict[str, type[VitscaleError]] = {
    "oom": MemoryExceeded,
    "diverged": DivergedError,
    "checkpoint": CheckpointError,
    "timeout": HangError,
    "setup": SetupError,
    "time_limit": Interrupted,
}


class Start(NamedTuple):
    """Where a training begins."""

    resume: Path | None
    """Checkpoint to go on from, or None from the start."""
    message: str
    """The same in words."""
    done: bool = False
    """Whether it is at its end already."""


def require_one_run(study: Study, runs: tuple[RunSpec, ...]) -> RunSpec:
    """The only run of a study that trains.

    Raises:
        UsageError: none or several runs, or nothing to learn.
    """
    if not study.train.trains:
        raise UsageError(f"study `{study.name}` does not say how long to train", "for example train.epochs=10")
    if len(runs) != 1:
        raise UsageError(
            f"`train` takes exactly one run, and study `{study.name}` has {len(runs)}",
            "give one value for every axis, for example world_size=2, or `vitscale run`, which trains every run",
        )
    return runs[0]


def start_of(folder: Path, run: RunSpec) -> Start:
    """Look for what is there already, before anything is started.

    Raises:
        CheckpointError: the newest checkpoint cannot be used, or is of another run.
    """
    if any(launch.ok for launch in read_launches(folder) if launch.run_id == run.run_id):
        return Start(None, "trained to its end already", done=True)
    root = folder / CHECKPOINTS
    newest = checkpoint.newest(root)
    if newest is None:
        return Start(None, "no checkpoint found: starting from the beginning")
    found = checkpoint.inspect(newest)
    checkpoint.require_same_run(newest, found, run)
    return Start(newest, f"going on from checkpoint `{newest.name}`, after step {found.step}")


def train(
    folder: Path,
    run: RunSpec,
    label: str,
    study: Study,
    machine: Machine,
    launcher: Launcher,
    observer: Observer,
    followed: Callable[[Path], AbstractContextManager[object]] = nullcontext,
) -> None:
    """Train to the end in a folder that is `results.opened`.

    Where ranks end on the way, training starts again from a checkpoint that is newer than the one that they began with,
    `train.restarts` times.

    `followed` makes what accompanies a launch, from its folder: trackers, where there are any.

    Raises:
        Interrupted: asked to stop; a checkpoint holds what was learnt.
        LeftRunning: asked to stop, and a scheduler goes on with it.
        CheckpointError, MemoryExceeded, HangError, DivergedError, SetupError, WorkerError: as the ranks ended.
    """
    going_on = launcher.left(folder) if isinstance(launcher, Queue) else []
    bury(folder, {run.run_id: run}, going_on)
    left = [round_ for round_ in going_on if round_.entries[0].run_id == run.run_id]
    start = start_of(folder, run)
    observer.message("waiting for what an earlier command left running" if left else start.message)
    if start.done and not left:
        return
    observer.started(1, 0)
    round_ = left[0] if left else _round(folder, run, study, machine, start)
    for restart in itertools.count(1):
        with followed(folder / round_.entries[0].folder):
            end = _settled(folder, round_, _serve(folder, round_, label, launcher, observer), observer)
        if end.status == "ok":
            return
        newer = _newer(folder, run, round_, end) if restart <= study.train.restarts else None
        if newer is None:
            raise _error(end)
        told = f"training ended: {end.reason}; {newer.message} (restart {restart} of {study.train.restarts})"
        observer.message(told)
        round_ = _round(folder, run, study, machine, newer, restart)


def _round(folder: Path, run: RunSpec, study: Study, machine: Machine, start: Start, restart: int = 0) -> Round:
    """The next process start; `restart` is its number, 0 is the command's first."""
    every = study.train.checkpoint_epochs or study.train.eval_epochs
    plan = Checkpointing(
        root=CHECKPOINTS,
        export=EXPORT,
        every=in_steps(every, run.data.images, run.global_batch),
        keep=study.train.keep,
        resume=None if start.resume is None else str(start.resume.relative_to(folder)),
        restart=restart,
    )
    return make_round(next_round(folder), run, [next_entry(folder, run, plan)], machine)


def _newer(folder: Path, run: RunSpec, round_: Round, end: RoundEnd) -> Start | None:
    """A checkpoint since the round began, where a further start need not end as this one did."""
    if not end.again or end.kind is not None or end.status not in _PASSING:
        return None
    plan = round_.entries[0].checkpoints
    try:
        start = start_of(folder, run)
    except CheckpointError:
        return None  # how it ended is told; the same command then names the checkpoint
    began = folder / plan.resume if plan and plan.resume else None
    return None if start.resume in (None, began) else start


def _serve(folder: Path, round_: Round, label: str, launcher: Launcher, observer: Observer) -> RoundEnd:
    follow = Follow(folder, round_, {round_.entries[0].run_id: label}, observer)
    try:
        return launcher.run(folder, round_, follow.beat)
    except LeftRunning:
        raise
    except (KeyboardInterrupt, Interrupted):
        return RoundEnd("killed", "interrupted", again=False)
    finally:
        follow.finish()


def _settled(folder: Path, round_: Round, end: RoundEnd, observer: Observer) -> RoundEnd:
    """How the training ended: as its record says, which is written here where the ranks could not."""
    entry = round_.entries[0]
    if (folder / entry.folder / MANIFEST).exists():
        launch = next(one for one in read_launches(folder) if str(one.path.relative_to(folder)) == entry.folder)
        assert launch.manifest is not None
        # Of ranks that saved and ended, as they were asked to, the launcher says whether a scheduler asked.
        again = end.again and end.status == launch.manifest.status == "killed"
        return end._replace(status=launch.manifest.status, reason=launch.manifest.reason, again=again)
    end = end if end.status != "ok" else RoundEnd("failed", "left no record")
    if (folder / entry.folder).exists():
        manifest = close_launch(folder, entry, round_.name, end)
        if manifest.status == "ok":
            observer.message(f"what was learnt is kept; {manifest.notes['memory']}")
        end = end._replace(status=manifest.status)
    return end


def _error(end: RoundEnd) -> VitscaleError:
    if end.status == "killed":
        return Interrupted(f"training stopped: {end.reason}", _AGAIN)
    return _ERRORS.get(end.kind or end.status, WorkerError)(f"training ended: {end.reason}", end.hint or _AGAIN)
