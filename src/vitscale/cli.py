"""The command line: each verb reads as its table of contents, and imports what it needs when it is called.

Longer than 300 lines: every verb with its flags and their help stands here.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from vitscale import predicting, starting, workflow
from vitscale.errors import Interrupted, ResultsError, UsageError, VitscaleError

app = typer.Typer(
    help="Train Vision Transformers at scale, and know how they scale.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="A study file, or the name of a shipped study.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Study keys to change; a comma makes a list: world_size=1,2,4."),
]
Launcher = Annotated[starting.LauncherName, typer.Option(help="Who starts the ranks.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
ResultsFolder = Annotated[Path, typer.Argument(metavar="RESULTS", help="A results folder, or a folder of several.")]


@app.command()
def run(
    study: StudyName,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Results folder; default results/<study name>.")] = None,
    launcher: Launcher = starting.LauncherName.local,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and start nothing.")] = False,
    json: Json = False,
) -> None:
    """Measure what is missing of a study, and report on all of it."""
    from vitscale.report import terminal
    from vitscale.study import results

    loaded, where = workflow.resolve(study, overrides, launcher)
    console, folder = terminal.console(), out or results.default_folder(loaded.study.name)
    if not dry_run and starting.followed(launcher, loaded, where, folder):
        return
    plan = workflow.make_plan(loaded, where, prepare=False)
    if dry_run:
        workflow.show_plan(plan, json=json)
        if launcher is starting.LauncherName.slurm and not json:
            workflow.show_jobs(plan, where, folder)
        return
    results.check(folder)
    if launcher is not starting.LauncherName.simulate:
        starting.require_ready(launcher)
        plan = workflow.make_plan(loaded, where, prepare=True, report=lambda line: console.print(terminal.clean(line)))
    runs = starting.startable(plan, launcher)
    workflow.require_sound_records(folder)
    terminal.print_choices(plan.document(), console)
    with results.opened(folder, plan):
        outcome = workflow.measure(folder, plan, runs, where, launcher, console)
        result, page = workflow.write_reports(folder)
    if json:
        workflow.print_json(result.analysis.model_dump(mode="json"))
    else:
        terminal.print_summary(result, page, console)
    if others := starting.of_other_starts(plan, runs, folder):
        console.print(others)
    if error := outcome.error(len(runs)):
        raise error


@app.command()
def train(
    study: StudyName,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Results folder; default results/<study name>.")] = None,
    launcher: Launcher = starting.LauncherName.local,
) -> None:
    """Train one run to its end, with evaluation and checkpoints; the same command goes on after an interruption."""
    from vitscale.report import terminal
    from vitscale.study import results
    from vitscale.study.train import require_one_run, start_of
    from vitscale.trackers.choose import open_trackers

    if launcher is starting.LauncherName.simulate:
        raise UsageError("nothing can be trained by simulation", "vitscale run STUDY --launcher simulate")
    loaded, where = workflow.resolve(study, overrides, launcher)
    loaded = workflow.with_measure(loaded, launches=1)
    console, folder = terminal.console(), out or results.default_folder(loaded.study.name)
    if starting.followed(launcher, loaded, where, folder):
        return
    plan = workflow.make_plan(loaded, where, prepare=False)
    require_one_run(loaded.study, plan.grid.runs)
    starting.startable(plan, launcher)
    trackers = open_trackers(loaded.study.train.trackers, folder)
    results.check(folder)
    starting.require_ready(launcher)
    plan = workflow.make_plan(loaded, where, prepare=True, report=lambda line: console.print(terminal.clean(line)))
    workflow.require_sound_records(folder)
    terminal.print_choices(plan.document(), console)
    start_of(folder, plan.grid.runs[0])  # a checkpoint that is refused changes nothing here
    with results.opened(folder, plan):
        try:
            workflow.train_to_end(folder, plan, where, launcher, console, trackers)
        finally:
            result, page = workflow.write_reports(folder)
    terminal.print_summary(result, page, console)


@app.command(name="plan")
def plan_(study: StudyName, overrides: Overrides = None) -> None:
    """Show runs, memory, communication and expected time of a study; start nothing."""
    loaded, where = workflow.resolve(study, overrides, None)
    workflow.show_plan(workflow.make_plan(loaded, where, prepare=False), json=False)


@app.command()
def doctor(
    study: Annotated[
        str | None, typer.Argument(metavar="[STUDY]", help="A study; its largest world is looked at.")
    ] = None,
    overrides: Overrides = None,
    launcher: Launcher = starting.LauncherName.local,
) -> None:
    """Look at machines and links before anything is trained, and say what to type where something is wrong."""
    from vitscale.report import examined, terminal

    loaded, where, folder = workflow.to_examine(study, overrides, launcher)
    if starting.followed(launcher, loaded, where, folder):
        return
    found, path, error = workflow.examine(loaded, where, folder, launcher)
    examined.print_report(found, path, terminal.console(data=True))
    if error:
        raise error


@app.command()
def report(results: ResultsFolder) -> None:
    """Analyse a results folder again and write its report; of a folder of several, one page over all of them too."""
    from vitscale.report import terminal
    from vitscale.study.results import studies_in

    console = terminal.console(data=True)
    studies = studies_in(results)
    if not studies:
        terminal.print_summary(*workflow.write_reports(results), console)
        return
    chapters, page = workflow.write_collection(results, studies)
    terminal.print_collection(chapters, page, console)
    if unread := [one.folder for one in chapters if one.folder and one.problem]:
        raise ResultsError(f"{len(unread)} of {len(studies)} studies cannot be read: {', '.join(unread)}")


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
        workflow.print_json(comparison.to_dict())
    else:
        terminal.print_comparison(comparison, terminal.console(data=True))
    if comparison.changed:
        raise typer.Exit(1)


@app.command()
def predict(
    results: Annotated[Path, typer.Argument(metavar="RESULTS|TABLE", help="A results folder, or a table of runs.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="What differs: protocol, micro_batch, engine, device, link, ..."),
    ] = None,
    world_size: Annotated[
        str | None, typer.Option("--world-size", help="Asked, as in 16,32; default 2, 4 and 8 times the largest.")
    ] = None,
    series: Annotated[str | None, typer.Option(help="One series by its name; default all.")] = None,
    ranks_per_node: Annotated[int | None, typer.Option(min=1, help="Ranks on each asked node.")] = None,
    suggest: Annotated[bool, typer.Option("--suggest", help="Name the runs that would narrow the interval.")] = False,
    json: Json = False,
) -> None:
    """Predict step time, throughput and efficiency at other world sizes, with 80 and 95 % intervals."""
    from vitscale.report import prediction_text, terminal

    found = predicting.predict(results, overrides or (), world_size, series, ranks_per_node, suggest=suggest, one=json)
    if json:
        workflow.print_json(found.told[0].document())
        return
    console = terminal.console(data=True)
    prediction_text.print_answers(found, console)
    if results.is_dir():
        console.print(terminal.clean(f"drawn by: vitscale report {results}"))


@app.command()
def recommend(
    source: Annotated[str, typer.Argument(metavar="RESULTS|MODEL", help="A results folder, or a timm ViT by name.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="What is trained: images, epochs, global_batch, price_per_hour."),
    ] = None,
    memory: Annotated[str | None, typer.Option(help="Memory of a device, as in 24GiB; default its own.")] = None,
    deadline: Annotated[str | None, typer.Option(help="Longest time to train, as in 8h.")] = None,
    budget: Annotated[float | None, typer.Option(min=0, help="Most that it may cost; needs prices.")] = None,
    devices: Annotated[str | None, typer.Option(help="What can be had, as in a100x8@1.5,t4x32@0.35.")] = None,
    target_accuracy: Annotated[float | None, typer.Option(min=0, max=1, help="Train to this accuracy.")] = None,
    json: Json = False,
) -> None:
    """Choose ranks, batch, engine and precision under limits, with what else was close and why it lost."""
    from vitscale.report import recommendation_text, terminal

    answer, path = predicting.recommend(source, overrides or (), memory, deadline, budget, devices, target_accuracy)
    if json:
        workflow.print_json(answer.document())
        return
    console = terminal.console(data=True)
    recommendation_text.print_recommendation(answer, console)
    console.print(terminal.clean(f"run it: vitscale run {path}" if path else f"\n{answer.study}"))


@app.command()
def validate(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[TABLE|RESULTS]...", help="Tables or results folders; default the shipped tables."),
    ] = None,
    json: Json = False,
) -> None:
    """Hide the larger world sizes, predict them, and show how wrong the predictions were."""
    from vitscale.predict.validate import document
    from vitscale.predict.validate import validate as held_against
    from vitscale.report import prediction_text, terminal

    found = held_against(paths or ())
    if json:
        workflow.print_json(document(found))
    else:
        prediction_text.print_validation(found, terminal.console(data=True))


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
    told = f"{done.runs:,} runs of {done.series:,} series, {done.new:,} of them new in {out}; vitscale report {out}"
    console.print(terminal.clean(told))


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


# A scheduler's, a closed terminal's; Ctrl-C is Python's own.
_STOPS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def _stop(signum: int, _frame: object) -> None:
    raise Interrupted(f"stopped by {signal.Signals(signum).name}", "the same command goes on with what is missing")


def main() -> None:
    """Run a command and end with its exit status (see `errors.py`)."""
    for number in _STOPS:
        signal.signal(number, _stop)
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


_HINTS = {UsageError.exit_code: "docs/reference/study.md has every key, its unit and what it takes"}


def _failed(error: VitscaleError) -> int:
    from vitscale.report.terminal import print_error

    for number in (signal.SIGINT, *_STOPS):
        signal.signal(number, signal.SIG_IGN)  # it is over: one more Ctrl-C must not change the status
    print_error(error.message, error.hint or _HINTS.get(error.exit_code))
    return error.exit_code
