"""Launchers by their names: what each needs, which runs it can start, and who leads where a starter is outside.

Imports are inside the functions, as in `cli.py`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vitscale.errors import UsageError

if TYPE_CHECKING:
    from vitscale.config.load import Loaded
    from vitscale.config.runspec import RunSpec
    from vitscale.config.study import HardwareSection
    from vitscale.launch.hostfile import Host
    from vitscale.launch.outcome import Launcher
    from vitscale.study.plan import Plan
    from vitscale.study.where import Where


class LauncherName(StrEnum):
    """Who starts the ranks."""

    local = "local"
    lab = "lab"
    mpi = "mpi"
    hosts = "hosts"
    slurm = "slurm"
    env = "env"
    simulate = "simulate"


def hosts_of(loaded: Loaded, launcher: LauncherName | None) -> tuple[Host, ...]:
    """Those that ranks are started on, none where that is this machine. `plan` takes the study's, if it names some."""
    from vitscale.launch.hostfile import read_hostfile

    path = loaded.study.launch.hostfile
    if launcher is LauncherName.hosts and path is None:
        raise UsageError("the launcher `hosts` needs `launch.hostfile`", "launch.hostfile=hosts.txt")
    read = launcher in (None, LauncherName.mpi, LauncherName.hosts)
    return read_hostfile(Path(path)) if path and read else ()


class Simulated(NamedTuple):
    """A device that is simulated in this machine's place."""

    device: str
    """Its name in the catalog, or `cpu` for the CPU of a calibration."""
    per_node: int | None = None
    """Of that CPU: ranks on the fullest node that was measured."""


def simulated_by(hardware: HardwareSection, launcher: LauncherName | None) -> Simulated | None:
    """The device that is simulated, or None. `plan` has no launcher and simulates where a device or fit is named.

    Raises:
        UsageError: none is named and the launcher simulates, one is and it does not, or there are no figures of it.
    """
    from vitscale.cost.calibrated import device_of, fullest_node, read_calibration
    from vitscale.hardware import catalog

    name, path = hardware.name, hardware.calibration
    if launcher not in (None, LauncherName.simulate):
        if name is not None:
            problem = f"`hardware.name` = {name!r} is for what is not measured"
            raise UsageError(problem, "add --launcher simulate, or leave the key out")
        return None
    if name is not None and name.lower() != catalog.CPU:
        return Simulated(catalog.device(name).name)
    if path is not None:
        file = read_calibration(Path(path).expanduser())
        device = catalog.CPU if name else device_of(file)
        return Simulated(device, fullest_node(file, device) if device == catalog.CPU else None)
    if name is not None:
        raise UsageError(f"`hardware.name = {name}`: no data sheet has a CPU's figures", _CALIBRATION)
    if launcher is LauncherName.simulate:
        known = ", ".join(catalog.names())
        raise UsageError(
            "the launcher `simulate` needs `hardware.name` or `hardware.calibration`",
            f"one of {known}, or {_CALIBRATION}",
        )
    return None


_CALIBRATION = "hardware.calibration=RESULTS of runs that `vitscale predict RESULTS` was fitted to"


def require_ready(launcher: LauncherName) -> None:
    """Look for what a launcher that starts ranks needs, before anything is prepared.

    Raises:
        SetupError: with what to install, or to type.
    """
    from vitscale.launch.hosts import find_ssh
    from vitscale.launch.lab import require_namespaces
    from vitscale.launch.mpi import find_mpirun
    from vitscale.launch.preflight import require_training_packages

    require_training_packages()
    if launcher is LauncherName.lab:
        require_namespaces()
    if launcher is LauncherName.mpi:
        find_mpirun()
    if launcher is LauncherName.hosts:
        find_ssh()


def launcher_of(name: LauncherName, loaded: Loaded, where: Where) -> Launcher:
    """The launcher by its name."""
    if name is LauncherName.simulate:
        from vitscale.launch.simulate import Simulate

        calibration = loaded.study.hardware.calibration
        return Simulate(Path(calibration).expanduser() if calibration else None)
    from vitscale.data.catalog import store_root
    from vitscale.hardware.position import position
    from vitscale.launch.env import Env
    from vitscale.launch.hosts import Hosts, find_ssh
    from vitscale.launch.inputs import Inputs
    from vitscale.launch.lab import Lab
    from vitscale.launch.local import Local
    from vitscale.launch.mpi import Mpi, find_mpirun
    from vitscale.launch.slurm import slurm

    study = loaded.study
    path = Path(study.data.path).expanduser() if study.data.path else None
    init = Path(study.train.init).expanduser() if study.train.init else None
    inputs = Inputs(store_root(), path, study.launch, init)
    if name is LauncherName.slurm:
        return slurm(inputs)
    if name is LauncherName.mpi:
        return Mpi(find_mpirun(), where.hosts, inputs)
    if name is LauncherName.hosts:
        return Hosts(find_ssh(), where.hosts, inputs)
    if name is LauncherName.env:
        return Env(position(os.environ), inputs)
    return Lab(inputs) if name is LauncherName.lab else Local(inputs)


def followed(launcher: LauncherName, loaded: Loaded, where: Where, folder: Path) -> bool:
    """Whether this process was one of a starter's, of another rank than 0, and did as that one says until its end."""
    if launcher is not LauncherName.env:
        return False
    require_ready(launcher)
    from vitscale.launch.env import Env

    starter = launcher_of(launcher, loaded, where)
    assert isinstance(starter, Env)
    if starter.position.rank:
        starter.follow(folder)
    return starter.position.rank > 0


def leading(starter: Launcher, folder: Path) -> AbstractContextManager[None]:
    """Be the first of the processes that a starter started."""
    from vitscale.launch.env import Env

    return starter.leading(folder) if isinstance(starter, Env) else nullcontext()


def startable(plan: Plan, launcher: LauncherName) -> tuple[RunSpec, ...]:
    """Runs that this start can measure: of the launcher `env` those of the world that it is part of.

    Raises:
        UsageError: there is none.
    """
    from vitscale.hardware.position import position

    if launcher is not LauncherName.env:
        return plan.grid.runs
    place = position(os.environ)
    world = place.world_size, place.local_world_size
    runs = tuple(run for run in plan.grid.runs if (run.world_size, run.ranks_per_node) == world)
    if not runs:
        started = f"{place.world_size} processes, {place.local_world_size} on each host"
        raise UsageError(f"{place.starter} started {started}: no run of the study has as many", _worlds(plan.grid.runs))
    return runs


def of_other_starts(plan: Plan, runs: Sequence[RunSpec], folder: Path) -> str | None:
    """What to start for the runs that this start could not measure and no earlier one has, or None where none is left.

    Args:
        plan: all runs.
        runs: those of this start.
        folder: the results folder.
    """
    from vitscale.records.launches import read_launches
    from vitscale.records.schema import FINAL

    ended = [(one.run_id, one.manifest.status) for one in read_launches(folder) if one.manifest]
    enough = plan.loaded.study.measure.launches

    def left(run: RunSpec) -> bool:
        statuses = [status for run_id, status in ended if run_id == run.run_id]
        return statuses.count("ok") < enough and not ({*FINAL} - {"ok"}) & {*statuses}

    others = [run for run in plan.grid.runs if run not in runs and left(run)]
    return f"{len(others)} of {len(plan.grid.runs)} runs are for another start: {_worlds(others)}" if others else None


def _worlds(runs: Sequence[RunSpec]) -> str:
    """Processes that a starter has to start, `processes to start: 1; 4, 2 on each host`."""
    worlds = sorted({(run.world_size, run.ranks_per_node) for run in runs})
    named = (str(ranks) if ranks == each else f"{ranks}, {each} on each host" for ranks, each in worlds)
    return f"processes to start: {'; '.join(named)}"
