"""Tables as text, for readers. Full precision for programs is in `sheets.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vitscale.analysis import text
from vitscale.analysis.result import Interval, LaunchResult, RunResult, StudyResult
from vitscale.report.rows import label
from vitscale.report.rows.devices import COSTS, costly
from vitscale.report.rows.metrics import FORMS, Metric, value_of
from vitscale.report.rows.split import PARTS
from vitscale.report.rows.sweeps import Sweep, sweep_key, swept
from vitscale.units import NOT_AVAILABLE, number, percent, seconds, size


@dataclass(frozen=True)
class Table:
    """A table of text."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1
    """Columns from the left that hold words; the rest hold figures and are set to the right."""

    @property
    def long(self) -> bool:
        """Whether it is folded away at first."""
        return len(self.rows) > 12


def throughput_table(result: StudyResult) -> Table:
    """Step time, throughput and, where any is known, model FLOP utilisation of every run."""
    known = any(run.mfu for run in result.analysis.runs)
    rows = []
    for run in result.analysis.runs:
        figures = (_of(run, run.step_s, seconds), _of(run, run.images_per_s, number))
        used = (interval_text(run.mfu, percent),) if known else ()
        rows.append((*_named(result, run), *figures, *used, str(run.launches)))
    header = (
        "Run",
        "World size",
        "Step [95 %]",
        "Images per s [95 %]",
        *(("MFU [95 %]",) if known else ()),
        "Launches",
    )
    return Table("Step time and throughput, median of the launches and 95 % interval", header, tuple(rows))


def gain_table(result: StudyResult, field: str) -> Table:
    """`speedup` or `efficiency` of every run, with the baseline it refers to."""
    runs = {run.run_id: run for run in result.analysis.runs}
    rows = []
    for run in result.analysis.runs:
        base = runs.get(result.analysis.baselines.get(run.series, ""))
        told = f"{base.world_size}" if base else "none"
        value = getattr(run, field)
        if value is None and base is None and run.step_s is not None:
            shown = f"{NOT_AVAILABLE} (no baseline)"
        elif base is not None and base.run_id == run.run_id:
            shown = "baseline"
        else:
            shown = _of(run, value, (lambda x: f"{number(x)}x") if field == "speedup" else percent)
        rows.append((*_named(result, run), told, shown))
    noun = "Speed-up" if field == "speedup" else "Efficiency"
    header = ("Run", "World size", "Baseline", f"{noun} [95 %]")
    return Table(f"{noun} of every run over its series' baseline", header, tuple(rows))


def split_table(result: StudyResult) -> Table:
    """Shares of the step of every run that has any."""
    runs = [run for run in result.analysis.runs if any(getattr(run.shares, part) is not None for part in PARTS)]
    others = {field: words for field, words in _OTHER_WAYS.items() if any(getattr(run, field) for run in runs)}
    hidden = ("Of communication, hidden",) if any(run.overlapped_share is not None for run in runs) else ()
    rows = []
    for run in runs:
        parts = [percent(getattr(run.shares, part)).removesuffix(" %") for part in PARTS]
        ways = [getattr(run, field) for field in others]
        told = [percent(way) if isinstance(way, float) else interval_text(way, percent) for way in ways]
        rows.append((label(result, run.run_id), *parts, *(percent(run.overlapped_share) for _ in hidden), *told))
    header = ("Run", *(f"{words[0].upper()}{words[1:]}" for words in PARTS.values()))
    caption = "Share of each part in the step, mean over the ranks, percent; n/a is not timed apart"
    return Table(caption, (*header, *hidden, *others.values()), tuple(rows))


_OTHER_WAYS = {
    "silent_share": "Goes without collectives [95 %]",
    "profiled_share": "Not hidden, by the profiler [95 %]",
    "idle_link_share": "The same bytes on the idle link",
}
"""Exposed communication and wait by other methods."""


def loss_table(result: StudyResult) -> Table:
    """First and last loss of every curve, and the accuracy where it was evaluated."""
    runs = {run.run_id: run for run in result.analysis.runs}
    rows = []
    for curve in result.losses:
        told = [loss for loss in curve.loss if loss is not None]
        accuracy = runs[curve.run_id].test_accuracy if curve.run_id in runs else None
        ends = (number(told[0], 4), number(told[-1], 4)) if told else (NOT_AVAILABLE, NOT_AVAILABLE)
        images = f"{curve.images[-1]:,}" if curve.images and curve.images[-1] is not None else NOT_AVAILABLE
        shown = percent(accuracy) if accuracy is not None else f"{NOT_AVAILABLE} (not evaluated)"
        rows.append((label(result, curve.run_id), str(len(curve.loss)), images, *ends, shown))
    header = ("Run", "Steps", "Images seen", "First loss", "Last loss", "Test accuracy")
    return Table("Training loss of each run's first launch, warm-up included", header, tuple(rows))


def accuracy_table(result: StudyResult) -> Table:
    """What the test set said of every run that was evaluated."""
    runs = {run.run_id: run for run in result.analysis.runs}
    rows = []
    for curve in result.accuracies:
        run = runs[curve.run_id]
        told = [one for one in curve.evaluations if one.test_accuracy is not None]
        if told:
            best = max(one.test_accuracy or 0.0 for one in told)
            last = (number(told[-1].epoch), percent(told[-1].test_accuracy), percent(best), number(told[-1].test_loss))
            way = (interval_text(run.time_to_accuracy_s, seconds), number(run.epochs_to_accuracy))
            rows.append((label(result, curve.run_id), str(len(told)), *last, *way))
    header = ("Run", "Evaluations", "Epochs", "Last accuracy", "Best", "Last test loss", *_TO_TARGET)
    return Table("Test set, of each run's first launch: every test image once", header, tuple(rows))


_TO_TARGET = ("Time to the target [95 %]", "Epochs to it")


def parity_table(result: StudyResult) -> Table:
    """How far each engine's first steps were from plain torch's, where the study compares ways to distribute."""
    rows = []
    for run in result.analysis.runs:
        told = run.parity
        if told is not None:
            verdict = "like for like" if told.ok else f"not comparable from step {told.first_step} on"
            gaps = (f"{one:.1e}" if one is not None else NOT_AVAILABLE for one in (told.worst_loss, told.worst_weight))
            rows.append((label(result, run.run_id), verdict, *gaps, told.tensor or NOT_AVAILABLE))
    header = ("Run", "Parity", "Largest gap of a loss", "Of a weight, by its norm", "In")
    return Table(
        "A few fp32 steps of each engine beside plain torch, relative differences", header, tuple(rows), words=2
    )


def no_table(result: StudyResult) -> Table:
    """Of a figure whose values another figure's table has."""
    del result
    return Table("", (), ())


def efficiency_table(result: StudyResult) -> Table:
    """What is lost to the machine and what to the larger batch, of every run that reached the target."""
    rows = []
    for run in result.analysis.runs:
        if run.images_to_accuracy is None:
            continue
        system, algorithmic = run.efficiency.median if run.efficiency else None, run.algorithmic_efficiency
        both = None if system is None or algorithmic is None else system * algorithmic
        batch = NOT_AVAILABLE if run.global_batch is None else f"{run.global_batch:,}"
        way = (interval_text(run.time_to_accuracy_s, seconds), number(run.epochs_to_accuracy))
        rows.append((*_named(result, run), batch, *way, percent(system), percent(algorithmic), percent(both)))
    header = ("Run", "World size", "Global batch", *_TO_TARGET, "System", "Algorithmic", "The whole")
    return Table(
        "Efficiency to the target accuracy: of the machine, of the batch, and their product", header, tuple(rows)
    )


def sweep_table(result: StudyResult, sweep: Sweep) -> Table:
    """Every metric of a sweep, by curve and by what lies across."""
    rows = []
    for run in swept(result, sweep):
        cells = [_cell(metric, result, run) for metric in sweep.metrics]
        rows.append((sweep_key(result, run, sweep), str(sweep.at(run)), *cells))
    titles = [f"{metric.title[0].upper()}{metric.title[1:]}" for metric in sweep.metrics]
    return Table(f"Against {sweep.across}, median and 95 % interval", ("Curve", sweep.across, *titles), tuple(rows))


def cost_table(result: StudyResult) -> Table:
    """Energy and money of every run of which any is known."""
    knees = {knee.run_id: "knee" if knee.reached else "knee or beyond" for knee in result.devices.knees}
    rows = []
    for run in costly(result):
        cells = [_cell(metric, result, run) for metric in COSTS]
        rows.append((label(result, run.run_id), str(run.world_size), *cells, knees.get(run.run_id, "")))
    titles = [f"{metric.title[0].upper()}{metric.title[1:]}" for metric in COSTS]
    return Table("Energy and cost, median and 95 % interval", ("Run", "World size", *titles, "Knee"), tuple(rows))


MOST_CLOCKS = 8
"""Different clocks that are listed; of more, the lowest and the highest."""


def device_table(result: StudyResult) -> Table:
    """Means of the steady window of every launch that was sampled."""
    rows = []
    for one in result.devices.launches:
        use = one.use
        clocks = [f"{number(hertz / 1e6)}" for hertz in sorted(set(use.sm_clocks_hz.values()))]
        clocks = [f"{clocks[0]} to {clocks[-1]}"] if len(clocks) > MOST_CLOCKS else clocks
        cells = (number(use.power_w), percent(use.utilisation_share), number(use.temperature_peak_c))
        load = (", ".join(clocks) or NOT_AVAILABLE, number(use.cpu_cores), number(use.rank_cores))
        rows.append((label(result, one.run_id), str(one.launch), *cells, *load))
    gpus = ("Power, W", "GPU utilisation", "Peak, °C", "SM clocks, MHz")
    header = ("Run", "Launch", *gpus, "Cores at work", "For the ranks")
    return Table("Devices in the steady window, all of a launch together", header, tuple(rows))


def batch_table(result: StudyResult) -> Table:
    """The batch identity of every run."""
    rows = []
    for run in result.analysis.runs:
        given = (run.micro_batch, run.grad_accum, run.global_batch)
        parallel = None
        if run.micro_batch and run.grad_accum and run.global_batch:
            parallel = run.global_batch // (run.micro_batch * run.grad_accum)
        micro, accum, whole = (NOT_AVAILABLE if value is None else str(value) for value in given)
        ways = NOT_AVAILABLE if parallel is None else str(parallel)
        told = size(run.memory_peak_bytes) if run.memory_peak_bytes else NOT_AVAILABLE
        rows.append((label(result, run.run_id), f"{micro} × {accum} × {ways} = {whole}", told))
    header = ("Run", "micro_batch × grad_accum × data_parallel = global_batch", "Peak memory of a rank")
    return Table("Images per optimizer step, and the highest memory of any rank", header, tuple(rows))


def invalid_table(result: StudyResult) -> Table:
    """Runs that are not a measurement of scaling, and why."""
    rows = [
        (label(result, run.run_id), "; ".join(run.invalid_reasons) or "no reason recorded")
        for run in result.analysis.runs
        if not run.valid
    ]
    return Table("Runs that are not valid as a measurement of scaling", ("Run", "Why"), tuple(rows), words=2)


def skipped_table(result: StudyResult) -> Table:
    """Combinations that were not run, and why: the first of each reason. `skipped.csv` has all."""
    rows = text.by_reason((one.label, one.reason or "no reason recorded") for one in result.skipped)
    pairs = tuple((labels, reason) for reason, labels in rows.items())
    return Table("Combinations that were skipped", ("Combination", "Why"), pairs, words=2)


def launch_table(result: StudyResult) -> Table:
    """Every launch, finished or not."""
    rows = [
        (label(result, one.run_id), str(one.launch), _status(one), _reason(one), seconds(one.step_s), _count(one.steps))
        for one in result.launches
    ]
    header = ("Run", "Launch", "Status", "Reason", "Median step", "Steady steps")
    return Table("Launches: each is one fresh process start", header, tuple(rows), words=4)


def _cell(metric: Metric, result: StudyResult, run: RunResult) -> str:
    return interval_text(value_of(metric, result, run), FORMS[metric.kind]).removesuffix(f" [{NOT_AVAILABLE}]")


def _named(result: StudyResult, run: RunResult) -> tuple[str, str]:
    marks = ([] if run.valid else ["not valid"]) + ([] if run.source == "measured" else [run.source])
    return label(result, run.run_id) + (f" ({', '.join(marks)})" if marks else ""), str(run.world_size)


def _of(run: RunResult, value: Interval | None, form: Any) -> str:
    if value is None:
        return f"{NOT_AVAILABLE} ({(run.invalid_reasons or ('not measured',))[0]})"
    return interval_text(value, form)


def interval_text(value: Interval | None, form: Any) -> str:
    """`12.3 ms [12.1, 12.6 ms]`; without an interval `12.3 ms [n/a]`."""
    if value is None:
        return NOT_AVAILABLE
    if value.low is None or value.high is None:
        return f"{form(value.median)} [{NOT_AVAILABLE}]"
    return f"{form(value.median)} [{_ends([form(value.low), form(value.high)])}]"


def _ends(texts: Sequence[str]) -> str:
    """`12.1, 12.6 ms` of `12.1 ms` and `12.6 ms`: the unit once, where both have the same."""
    low, high = texts
    unit = low.partition(" ")[2]
    return f"{low.removesuffix(unit).rstrip()}, {high}" if unit and high.partition(" ")[2] == unit else f"{low}, {high}"


def _count(value: int | None) -> str:
    return NOT_AVAILABLE if value is None else str(value)


def _status(one: LaunchResult) -> str:
    return f"{one.status}, outlier" if one.outlier else str(one.status)


def _reason(one: LaunchResult) -> str:
    if one.status == "unfinished":
        return "cut off before its manifest was written"
    return one.reason or ("" if one.status == "ok" else "no reason recorded")
