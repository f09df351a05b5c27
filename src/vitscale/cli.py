"""The command line: each verb reads as its table of contents, and imports what it needs when it is called."""

from __future__ import annotations

import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitscale.errors import Interrupted, UsageError, VitscaleError, WorkerError

if TYPE_CHECKING:
    from rich.console import Console

    from vitscale.analysis.result import StudyResult
    from vitscale.config.load import Loaded
    from vitscale.config.study import DataSection
    from vitscale.launch.outcome import Launcher
    from vitscale.study.grid import Where
    from vitscale.study.plan import Plan

app = typer.Typer(
    help="Train Vision Transformers at scale, and know how they scale.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class LauncherName(StrEnum):
    """Who starts the ranks."""

    local = "local"
    simulate = "simulate"


StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="A study file, or the name of a shipped study.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Study keys to change; a comma makes a list: world_size=1,2,4."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
ResultsFolder = Annotated[Path, typer.Argument(metavar="RESULTS", help="A results folder.")]


@app.command()
def run(
    study: StudyName,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Results folder; default results/<study name>.")] = None,
    launcher: Annotated[LauncherName, typer.Option(help="Who starts the ranks.")] = LauncherName.local,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and start nothing.")] = False,
    json: Json = False,
) -> None:
    """Measure what is missing of a study, and report on all of it."""
    from vitscale.launch.preflight import require_training_packages
    from vitscale.report import terminal
    from vitscale.study import results

    loaded, where = _resolve(study, overrides, launcher)
    plan = _plan(loaded, where, prepare=False)
    if dry_run:
        _show_plan(plan, json)
        return
    console, folder = terminal.console(), out or results.default_folder(loaded.study.name)
    results.check(folder)
    if launcher is LauncherName.local:
        require_training_packages()
        plan = _plan(loaded, where, prepare=True, report=lambda line: console.print(terminal.clean(line)))
    terminal.print_skipped(plan.document(), console)
    with results.opened(folder, plan):
        missing = _execute(folder, plan, where, launcher, console)
        result, page = _report(folder)
    if json:
        _print_json(result.analysis.model_dump(mode="json"))
    else:
        terminal.print_summary(result, page, console)
    if missing:
        raise WorkerError(
            f"{len(missing)} of {len(plan.grid.runs)} runs have fewer launches than asked for",
            "the findings say why; the same command tries them again",
        )


@app.command()
def train(
    study: StudyName,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Results folder; default results/<study name>.")] = None,
    launcher: Annotated[LauncherName, typer.Option(help="Who starts the ranks.")] = LauncherName.local,
) -> None:
    """Train one run to its end, with evaluation and checkpoints; the same command goes on after an interruption."""
    from vitscale.launch.preflight import require_training_packages
    from vitscale.report import terminal
    from vitscale.study import results
    from vitscale.study.train import require_one_run

    if launcher is LauncherName.simulate:
        raise UsageError("nothing can be trained by simulation", "vitscale run STUDY --launcher simulate")
    loaded, where = _resolve(study, overrides, launcher)
    loaded = _with_measure(loaded, launches=1)
    require_one_run(loaded.study, _plan(loaded, where, prepare=False).grid.runs)
    console, folder = terminal.console(), out or results.default_folder(loaded.study.name)
    results.check(folder)
    require_training_packages()
    plan = _plan(loaded, where, prepare=True, report=lambda line: console.print(terminal.clean(line)))
    with results.opened(folder, plan):
        try:
            _train(folder, plan, where, console)
        finally:
            result, page = _report(folder)
    terminal.print_summary(result, page, console)


@app.command(name="plan")
def plan_(study: StudyName, overrides: Overrides = None) -> None:
    """Show runs, memory, communication and expected time of a study; start nothing."""
    loaded, where = _resolve(study, overrides, None)
    _show_plan(_plan(loaded, where, prepare=False), False)


@app.command()
def report(results: ResultsFolder) -> None:
    """Analyse a results folder again and write its report."""
    from vitscale.report import terminal

    result, page = _report(results)
    terminal.print_summary(result, page, terminal.console(data=True))


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="Results folder to compare with.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Results folder that may have changed.")],
    json: Json = False,
) -> None:
    """Tell which runs of B are faster or slower than in A; exit status 1 if any is."""
    from vitscale.analysis.compare import compare as compare_folders
    from vitscale.report import terminal

    comparison = compare_folders(a, b)
    if json:
        _print_json(comparison.to_dict())
    else:
        terminal.print_comparison(comparison, terminal.console(data=True))
    if comparison.changed:
        raise typer.Exit(1)


@app.command(name="import")
def import_(
    form: Annotated[
        str, typer.Argument(metavar="FORMAT", help="table, deepspeed-log, epoch-csv, timm-log or torchtitan-log.")
    ],
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Logs or tables of that format.")],
    out: Annotated[Path, typer.Option(help="Results folder, new or of earlier imports.")],
) -> None:
    """Turn other people's logs and tables into records that `report` reads."""
    from vitscale.importers.write import import_files
    from vitscale.report import terminal
    from vitscale.study import results

    results.check(out)
    done = import_files(form, files, out)
    console = terminal.console(data=True)
    for tally in done.tallies:
        console.print(terminal.clean(tally.words()))
    console.print(
        terminal.clean(
            f"{done.runs:,} runs of {done.series:,} series, {done.new:,} of them new in {out}; vitscale report {out}"
        )
    )


@app.command()
def data(
    name: Annotated[str, typer.Argument(metavar="NAME", help="digits, cifar10, cifar100, imagefolder, imagenet100.")],
    from_: Annotated[Path | None, typer.Option("--from", metavar="PATH", help="Archive or folder to read.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch the published archive.")] = False,
) -> None:
    """Prepare a data set for training: whole or not at all."""
    from vitscale.data.catalog import store_root
    from vitscale.data.prepare import prepare
    from vitscale.report import terminal

    console = terminal.console(data=True)
    facts = prepare(
        name,
        store_root(),
        source=from_,
        download=download,
        verify=True,
        report=lambda line: console.print(terminal.clean(line)),
    )
    console.print(
        terminal.clean(
            f"{facts.name}: {facts.train_images:,} training and {facts.test_images:,} test images of "
            f"{facts.height} x {facts.width} x {facts.channels}, {facts.classes} classes; ready"
        )
    )


def _resolve(study: str, overrides: list[str] | None, launcher: LauncherName | None) -> tuple[Loaded, Where]:
    """The study, and the machine or the simulated device it is for. `plan` simulates where a device is named."""
    from vitscale.config.load import load
    from vitscale.hardware import catalog
    from vitscale.hardware.probe import probe
    from vitscale.study.grid import Where

    loaded = load(study, overrides or ())
    name = loaded.study.hardware.name
    if launcher is LauncherName.simulate and name is None:
        raise UsageError("the launcher `simulate` needs `hardware.name`", f"one of {', '.join(catalog.names())}")
    if launcher is LauncherName.local and name is not None:
        raise UsageError(
            f"`hardware.name` = {name!r} is for what is not measured", "add --launcher simulate, or leave the key out"
        )
    simulated = None if name is None else catalog.device(name).name
    if simulated is not None:
        # A closed form has no noise: further launches would repeat the first to the last digit.
        loaded = _with_measure(loaded, launches=1, target_interval=None, budget_s=None)
    return loaded, Where(probe(), simulated)


def _with_measure(loaded: Loaded, **changes: Any) -> Loaded:
    measure = loaded.study.measure.model_copy(update=changes)
    return loaded._replace(study=loaded.study.model_copy(update={"measure": measure}))


def _plan(loaded: Loaded, where: Where, *, prepare: bool, report: Any = None) -> Plan:
    from vitscale.data.catalog import store_root
    from vitscale.study import plan

    images_of: Any = plan.prepared(store_root(), report) if prepare else plan.described(store_root())
    return plan.make(loaded, where, images_of)


def _show_plan(plan: Plan, json: bool) -> None:
    from vitscale.report import terminal

    if json:
        _print_json(plan.document())
    else:
        terminal.print_plan(plan.document(), terminal.console(data=True))


def _execute(folder: Path, plan: Plan, where: Where, launcher: LauncherName, console: Console) -> tuple[str, ...]:
    """Measure; the run_ids that are still missing afterwards."""
    from vitscale.report.live import LiveTable, PlainLines
    from vitscale.study.execute import execute

    live = LiveTable(console, plan.labels) if console.is_terminal else PlainLines(console)
    measure = plan.loaded.study.measure
    with live as observer:
        starter = _launcher(launcher, plan.loaded.study.data, plan.loaded)
        outcome = execute(folder, plan.grid.runs, plan.labels, measure, where.machine, starter, observer)
    return outcome.missing


def _train(folder: Path, plan: Plan, where: Where, console: Console) -> None:
    from vitscale.report.live import LiveTable, PlainLines
    from vitscale.study.train import train

    study, run = plan.loaded.study, plan.grid.runs[0]
    live = LiveTable(console, plan.labels) if console.is_terminal else PlainLines(console)
    with live as observer:
        starter = _launcher(LauncherName.local, study.data, plan.loaded)
        train(folder, run, plan.labels[run.run_id], study, where.machine, starter, observer)


def _launcher(name: LauncherName, section: DataSection, loaded: Loaded) -> Launcher:
    if name is LauncherName.simulate:
        from vitscale.launch.simulate import Simulate

        return Simulate()
    from vitscale.data.catalog import store_root
    from vitscale.launch.local import Local

    path = Path(section.path).expanduser() if section.path else None
    init = Path(loaded.study.train.init).expanduser() if loaded.study.train.init else None
    return Local(store_root(), path, loaded.study.launch, init=init)


def _report(folder: Path) -> tuple[StudyResult, Path]:
    from vitscale.analysis.analyse import analyse, write_analysis
    from vitscale.report.write import write_report

    result = analyse(folder)
    write_analysis(folder, result)
    return result, write_report(folder, result)


def _print_json(document: dict[str, Any]) -> None:
    import json

    sys.stdout.write(json.dumps(document, indent=1, allow_nan=False) + "\n")


def _stop(signum: int, _frame: object) -> None:
    raise Interrupted(f"stopped by {signal.Signals(signum).name}", "the same command goes on with what is missing")


def main() -> None:
    """Run a command and end with its exit status (see `errors.py`)."""
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGHUP, _stop)
    signal.signal(signal.SIGUSR1, _stop)
    sys.exit(_status())


def _status() -> int:
    try:
        code = app(standalone_mode=False)
    except VitscaleError as error:
        return _failed(error)
    except KeyboardInterrupt:
        return _failed(Interrupted("interrupted", "the same command goes on with what is missing"))
    except BrokenPipeError:
        return 0
    except Exception as error:
        # Typer's own errors, of whichever click it carries: a flag or verb that does not exist.
        if not hasattr(error, "format_message"):
            raise
        return _failed(UsageError(error.format_message(), "vitscale --help, or vitscale VERB --help"))
    return code if isinstance(code, int) else 0


def _failed(error: VitscaleError) -> int:
    from vitscale.report.terminal import print_error

    print_error(error.message, error.hint)
    return error.exit_code
