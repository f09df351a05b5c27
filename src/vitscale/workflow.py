"""What several verbs of the command line do: resolve, plan, measure, train, report. Here the rooms meet.

Imports are inside the functions, as in `cli.py`: `--help` loads none of this, and `plan` loads no chart.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitscale.errors import ResultsError, UsageError, VitscaleError
from vitscale.starting import LauncherName, hosts_of, launcher_of, leading, require_ready, simulated_by, startable

if TYPE_CHECKING:
    from rich.console import Console

    from vitscale.analysis.result import StudyResult
    from vitscale.config.load import Loaded
    from vitscale.config.runspec import RunSpec
    from vitscale.records.examination import DoctorReport
    from vitscale.report.collection import Chapter
    from vitscale.study.execute import Outcome
    from vitscale.study.plan import Plan
    from vitscale.study.where import Where
    from vitscale.trackers.protocol import Tracker


def resolve(study: str, overrides: list[str] | None, launcher: LauncherName | None) -> tuple[Loaded, Where]:
    """The study, and the machine or the simulated device it is for."""
    from vitscale.config.load import load
    from vitscale.hardware.probe import probe
    from vitscale.study.where import Where

    loaded = load(study, overrides or ())
    if loaded.study.launch.hostfile and launcher not in (None, LauncherName.mpi, LauncherName.hosts):
        unread = f"`launch.hostfile` is for --launcher hosts and mpi: `{launcher}` does not read it"
        loaded = loaded._replace(notes=(*loaded.notes, unread))
    simulated = simulated_by(loaded.study.hardware, launcher)
    if simulated is not None:
        # A closed form has no noise: further launches would repeat the first to the last digit.
        loaded = with_measure(loaded, launches=1, target_interval=None, budget_s=None)
        return loaded, Where(probe(), simulated.device, calibrated_per_node=simulated.per_node)
    if launcher is LauncherName.slurm:
        from vitscale.launch.slurm import nodes

        cluster = nodes(loaded.study.launch, os.environ)
        return loaded, Where(cluster.machine, hosts=cluster.hosts)
    lab, elsewhere = launcher is LauncherName.lab, launcher is LauncherName.env
    return loaded, Where(probe(), None, lab, elsewhere, hosts_of(loaded, launcher))


def to_examine(study: str | None, overrides: list[str] | None, launcher: LauncherName) -> tuple[Loaded, Where, Path]:
    """The study, or `quick` in the world that there is, for what it is, and the results folder of `vitscale doctor`.

    Raises:
        UsageError: there is nothing to look at in a simulation.
    """
    from vitscale.config.load import load
    from vitscale.hardware.position import position
    from vitscale.study import doctor
    from vitscale.study.results import default_folder

    if launcher is LauncherName.simulate:
        raise UsageError("nothing can be looked at by simulation", "vitscale plan STUDY")
    words = overrides or []
    if study is None or "=" in study:
        place = position(os.environ) if launcher is LauncherName.env else None
        words = [*([study] if study else []), *words]
        _, where = resolve("quick", words, launcher)
        loaded = load("quick", [*doctor.world_of(launcher, where, place, words), *words])
        return loaded, where, default_folder(doctor.NAME)
    loaded, where = resolve(study, words, launcher)
    return loaded, where, default_folder(loaded.study.name)


def with_measure(loaded: Loaded, **changes: Any) -> Loaded:
    """The study with other values in `[measure]`."""
    measure = loaded.study.measure.model_copy(update=changes)
    return loaded._replace(study=loaded.study.model_copy(update={"measure": measure}))


def make_plan(loaded: Loaded, where: Where, *, prepare: bool, report: Any = None) -> Plan:
    """The plan; `prepare` makes the data ready first, `report` hears of it."""
    from vitscale.data.catalog import store_root
    from vitscale.study import plan

    images_of: Any = plan.prepared(store_root(), report) if prepare else plan.described(store_root())
    return plan.make(loaded, where, images_of)


def show_plan(plan: Plan, *, json: bool) -> None:
    """Print the plan."""
    from vitscale.report import terminal

    if json:
        print_json(plan.document())
    else:
        terminal.print_plan(plan.document(), terminal.console(data=True))


def show_jobs(plan: Plan, where: Where, folder: Path) -> None:
    """Print the files that SLURM would be given first, one for each process start."""
    from vitscale.launch.slurm import Slurm
    from vitscale.report import terminal
    from vitscale.study.rounds import first_rounds

    starter, out = launcher_of(LauncherName.slurm, plan.loaded, where), terminal.console(data=True)
    if not isinstance(starter, Slurm):
        return
    turns = plan.loaded.study.measure.launches if starter.takes_all else 1
    for path, text in starter.files(folder, first_rounds(folder, plan.grid.runs, where.machine, turns)):
        out.print(terminal.clean(f"\n{path}:"))
        sys.stdout.write(text)


def require_sound_records(folder: Path) -> None:
    """Read what is there before more is measured: a report that damage prevents is known now, not hours later.

    Raises:
        ResultsError: a record that no crash can damage is damaged.
    """
    if (folder / "runs").is_dir():
        from vitscale.records.reader import read_results

        read_results(folder)


def measure(
    folder: Path, plan: Plan, runs: Sequence[RunSpec], where: Where, launcher: LauncherName, console: Console
) -> Outcome:
    """Measure runs of the plan."""
    from vitscale.launch.jobs import end_leftovers
    from vitscale.report.live import LiveTable, PlainLines
    from vitscale.study.execute import execute

    starter = launcher_of(launcher, plan.loaded, where)
    end_leftovers(folder, starter)
    live = LiveTable(console, plan.labels) if console.is_terminal else PlainLines(console)
    measure = plan.loaded.study.measure
    with live as observer, leading(starter, folder):
        return execute(folder, runs, plan.labels, measure, where.machine, starter, observer)


def train_to_end(
    folder: Path, plan: Plan, where: Where, launcher: LauncherName, console: Console, trackers: list[Tracker]
) -> None:
    """Train the only run, with trackers beside it."""
    from vitscale.launch.jobs import end_leftovers
    from vitscale.report.live import LiveTable, PlainLines
    from vitscale.study.train import train
    from vitscale.trackers.follow import Follower, catch_up

    starter = launcher_of(launcher, plan.loaded, where)
    end_leftovers(folder, starter)
    study, run = plan.loaded.study, plan.grid.runs[0]
    live = LiveTable(console, plan.labels) if console.is_terminal else PlainLines(console)
    with live as observer:

        def followed(launch_folder: Path) -> Follower:
            catch_up(folder, trackers, observer.message)
            return Follower(folder, launch_folder, trackers, observer.message)

        with leading(starter, folder):
            train(folder, run, plan.labels[run.run_id], study, where.machine, starter, observer, followed)


def examine(
    loaded: Loaded, where: Where, folder: Path, launcher: LauncherName
) -> tuple[DoctorReport, Path, VitscaleError | None]:
    """Look at machines and links; what was found, where that lies, and what to end with."""
    from vitscale.launch.jobs import end_leftovers
    from vitscale.records.examination import DOCTOR
    from vitscale.study import doctor, results

    plan = make_plan(loaded, where, prepare=False)
    runs = startable(plan, launcher)
    results.check(folder)
    require_ready(launcher)
    starter = launcher_of(launcher, loaded, where)
    with results.locked(folder):
        end_leftovers(folder, starter)
        with leading(starter, folder):
            found, error = doctor.examine(folder, loaded.study.name, runs, where.machine, starter, launcher)
    return found, folder / DOCTOR, error


def write_reports(folder: Path) -> tuple[StudyResult, Path]:
    """Analyse a results folder and write what is shown of it; the page's path."""
    from vitscale.analysis.analyse import analyse, write_analysis
    from vitscale.records.writer import require_no_links
    from vitscale.report.write import write_report

    require_no_links(folder)
    with _no_cycles():
        result = analyse(folder)
        write_analysis(folder, result)
        return result, write_report(folder, result)


@contextmanager
def _no_cycles() -> Iterator[None]:
    """Without the collector of cycles: records are many objects in none, and it visits them all again and again."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def write_collection(folder: Path, studies: list[Path]) -> tuple[list[Chapter], Path]:
    """Report on each of the results folders, and on all of them in one page; its chapters and its path."""
    from vitscale.report import collection

    chapters = []
    for study in studies:
        try:
            chapters.append(collection.told(study.name, write_reports(study)[0]))
        except ResultsError as error:
            chapters.append(collection.unreadable(study.name, error.message))
    chapters += collection.not_run(chapters)
    chapters.sort(key=lambda one: one.study.rsplit("/", 1)[-1])
    return chapters, collection.write_collection(folder, chapters)


def print_json(document: dict[str, Any]) -> None:
    """One JSON document on standard output."""
    import json

    sys.stdout.write(json.dumps(document, indent=1, allow_nan=False) + "\n")
