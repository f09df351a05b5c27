"""A study as the report tells it: plain text in the order it is read, the same for the page and for Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from vitscale.analysis import text
from vitscale.analysis.result import StudyResult
from vitscale.report import memory_tables, prediction_tables, seed_table, tables, training_table, verdict_tables
from vitscale.report.escape import cleaned
from vitscale.report.figures import Drawing
from vitscale.report.method import method, resolved_text
from vitscale.report.reasons import Reason, more_reasons, reasons
from vitscale.report.rows.sweeps import ACCUMULATION, ACCURACY, BATCH, RESOLUTION
from vitscale.report.tables import Table

_SOURCES = {
    "simulated": "Simulated, not measured: times come from the cost model, no step was run.",
    "imported": "Imported, not measured by vitscale: the figures come from other people's logs.",
}

LIKE_FOR_LIKE = "Are the runs like for like?"
"""Heading of the parity."""


@dataclass(frozen=True)
class Message:
    """A finding."""

    severity: str
    kind: str
    evidence: str
    hint: str


@dataclass(frozen=True)
class Part:
    """A figure's place: heading, how to read it, its table."""

    name: str
    title: str
    reading: str
    alternative: str
    """What the figure shows, for who does not see it."""
    drawn: bool
    notes: tuple[str, ...]
    table: Table


@dataclass(frozen=True)
class Document:
    """Everything in the report but the drawings."""

    study: str
    question: str
    answer: str
    banners: tuple[str, ...]
    reasons: tuple[Reason, ...]
    """Why each series is not faster at its largest world size: the first thing below the answer."""
    more_reasons: str
    """How many series more there are; empty where these are all."""
    alerts: tuple[Message, ...]
    """Errors and warnings: shown near the top."""
    parity: Table
    """Whether runs are like for like: stated before any figure; without rows where none was held against torch."""
    parts: tuple[Part, ...]
    findings: tuple[Message, ...]
    method: tuple[tuple[str, str], ...]
    batch: Table
    exceptions: tuple[Table, ...]
    """What is not valid, and what was skipped."""
    launches: Table
    resolved: str


def document(result: StudyResult, drawings: Sequence[Drawing]) -> Document:
    """The report's text, with nothing in it that a terminal or a browser could act on but markup, which is escaped
    by whoever writes a format."""
    analysis = result.analysis
    messages = tuple(Message(one.severity, one.kind, one.evidence, one.hint or "") for one in analysis.findings)
    made = Document(
        study=analysis.study,
        question=analysis.question,
        answer=analysis.answer,
        banners=_banners(result),
        reasons=reasons(result),
        more_reasons=more_reasons(result),
        alerts=tuple(one for one in messages if one.severity != "note"),
        parity=tables.parity_table(result),
        parts=tuple(_parts(result, {one.name: one for one in drawings})),
        findings=messages,
        method=method(result),
        batch=tables.batch_table(result),
        exceptions=tuple(table for table in (tables.invalid_table(result), tables.skipped_table(result)) if table.rows),
        launches=tables.launch_table(result),
        resolved=resolved_text(result.resolved),
    )
    return cleaned(made)


@dataclass(frozen=True)
class _Words:
    title: str
    reading: str
    table: Callable[[StudyResult], Table]
    absent: str = ""
    """Why there is none, said in its place; empty: nothing is missed, and nothing is said."""
    alone: bool = False
    """A table without a figure; nothing is said where it has no rows."""


_PARTS: dict[str, _Words] = {
    "waterfall": _Words(
        "From ideal to measured throughput",
        "Ideal is the baseline's throughput per rank times the ranks. Each bar is what a part of the step takes beyond "
        "the baseline's for the same work per rank; they add up to what is lost.",
        verdict_tables.waterfall_table,
    ),
    "causes": _Words(
        "Causes",
        "What each run's step is spent on and need not be, the dearest first. A gain is the throughput without the "
        "cause over the measured one. A setting's seconds are a part of the cause it stands under.",
        verdict_tables.cause_table,
        alone=True,
    ),
    "throughput": _Words(
        "Throughput",
        "Images per second against world size. A point is the median of a run's launches, its bar the 95 % interval.",
        tables.throughput_table,
        "no run has a throughput",
    ),
    "speedup": _Words(
        "Speed-up",
        "Throughput over the baseline's. Both axes are logarithmic, so ideal scaling is the straight dashed line.",
        lambda result: tables.gain_table(result, "speedup"),
        "no series has a baseline",
    ),
    "efficiency": _Words(
        "Efficiency",
        "Speed-up over what the added ranks would give at best; 100 % is ideal.",
        lambda result: tables.gain_table(result, "efficiency"),
        "no series has a baseline",
    ),
    "prediction": _Words(
        "Prediction",
        "What further ranks would give, by mechanisms fitted to the measured runs: `vitscale predict` wrote it. The "
        "bands are where a launch would fall, not where a mean would.",
        prediction_tables.prediction_table,
    ),
    "split": _Words(
        "Where a step's time goes",
        "Share of each part in the step, mean over the ranks and the launches.",
        tables.split_table,
        "no run has a split of its step",
    ),
    "ranks": _Words(
        "Each rank's step",
        "Of each series at its largest world size. A rank for which the others wait is late: the part in which it is "
        "longest against the others tells where. Of many ranks the latest are shown; tables/ranks.csv has all.",
        verdict_tables.rank_table,
        alone=True,
    ),
    "memory": _Words(
        "Memory of a rank",
        "Tensors by what they are for, of the rank that holds most; the stroke is the sum of the plan's closed forms.",
        memory_tables.memory_table,
    ),
    "largest": _Words(
        "Largest model that fits",
        "By the closed forms at each run's stage, precision, ranks and micro-batch, with nothing kept back for CUDA, "
        "NCCL and Python: an upper bound. Blocks are of the study's model; a timm ViT has its own image size.",
        memory_tables.largest_table,
        alone=True,
    ),
    "accuracy": _Words(
        "Test accuracy",
        "Of each run's first launch that counts. Time is training time, without evaluations and checkpoints.",
        tables.accuracy_table,
    ),
    "test_loss": _Words(
        "Test loss",
        "Mean cross-entropy without label smoothing, at the same evaluations; the table above has the last of each.",
        tables.no_table,
    ),
    "efficiency_split": _Words(
        "What larger batches cost",
        "System efficiency is throughput per rank over the baseline's. Algorithmic efficiency is the images that the "
        "baseline needed for the target accuracy over those that this run needed. Their product is what counts.",
        tables.efficiency_table,
    ),
    "seeds": _Words(
        "Over the seeds",
        "Runs that differ in `measure.seed` alone, together: the median of them, and the least and the most.",
        seed_table.seed_table,
        alone=True,
    ),
    "batch": _Words(
        "Batch size",
        "Time of an epoch, and how much longer a step is than at the smallest world size with the same micro_batch and "
        "grad_accum: communication, waiting and shared memory together.",
        lambda result: tables.sweep_table(result, BATCH),
    ),
    "resolution": _Words(
        "Image size",
        "Time of a step, highest memory of a rank and what it sends, against the side of an image in pixels.",
        lambda result: tables.sweep_table(result, RESOLUTION),
    ),
    "accumulation": _Words(
        "Accumulation",
        "The same global batch in more and smaller micro-steps. What a rank sends is a closed form, not measured.",
        lambda result: tables.sweep_table(result, ACCUMULATION),
    ),
    "accumulation_map": _Words(
        "Accumulation and ZeRO stage",
        "Bytes and time of an optimizer step, and memory of a rank, measured and by the closed form. Stages 2 and 3 "
        "communicate in every micro-step, 0 and 1 once a step: there accumulation saves traffic, above it does not. "
        "Time saved and memory paid are against the same stage with the fewest micro-steps, for the same images.",
        verdict_tables.map_table,
    ),
    "collectives": _Words(
        "Collectives",
        "Per optimizer step, of each run's first launch that counts: sizes and bandwidths as nccl-tests defines them. "
        "A micro-step's are a step's over grad_accum. The idle link is the bus bandwidth of the same operation, at the "
        "nearest size timed, among all ranks, before the first step.",
        verdict_tables.collective_table,
        alone=True,
    ),
    "roofline": _Words(
        "Roofline by layer",
        "FLOP of matrix products and bytes moved once are closed forms, times are rank 0's in a few steps after the "
        "steady window. The peak is that of a matrix product timed before; on a busy machine a layer may exceed it. "
        "Where few FLOP a byte go with a low share of the peak, memory bounds the layer.",
        verdict_tables.layer_table,
        alone=True,
    ),
    "accuracy_batch": _Words(
        "Accuracy against the global batch",
        "Of the last evaluation, and the epochs to the target accuracy where the study has one.",
        lambda result: tables.sweep_table(result, ACCURACY),
    ),
    "trainings": _Words(
        "Training with failures",
        "Simulated: all epochs, saved as often as Daly's form has it, under the failures of so many devices.",
        training_table.training_table,
        alone=True,
    ),
    "costs": _Words(
        "Energy and cost",
        "Of the devices alone; cost is in the currency of hardware.price_per_hour.",
        tables.cost_table,
    ),
    "sensors": _Words(
        "Devices against time",
        "What the sensors said beside the steps of each run's first launch that counts, a line per device.",
        tables.device_table,
    ),
    "loss": _Words(
        "Training loss",
        "Mean over the ranks, of the first launch of each run that counts, warm-up included.",
        tables.loss_table,
        "no run has a loss",
    ),
}


def _parts(result: StudyResult, drawings: dict[str, Drawing]) -> Iterator[Part]:
    for name, words in _PARTS.items():
        drawing = drawings.get(name)
        if words.alone:
            table = words.table(result)
            if table.rows:
                yield Part(name, words.title, words.reading, "", False, (), table)
        elif drawing is not None:
            table = words.table(result)
            rows = {row[0] for row in table.rows} if table.header[:1] == ("Run",) else table.rows
            below = f", {text.count(len(rows), 'run')}. The table below has every figure." if table.rows else "."
            about = words.title + below
            yield Part(name, words.title, words.reading, about, True, drawing.notes, table)
        elif words.absent:
            yield Part(name, words.title, f"Not drawn: {words.absent}.", "", False, (), words.table(result))


def _banners(result: StudyResult) -> tuple[str, ...]:
    runs = result.analysis.runs
    found = []
    for source, words in _SOURCES.items():
        of_source = [run for run in runs if run.source == source]
        if of_source:
            some = "" if len(of_source) == len(runs) else f"{len(of_source)} of {len(runs)} runs. "
            found.append(some + words)
    return tuple(found)
