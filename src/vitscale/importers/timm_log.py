"""`timm-log`: what timm's `train.py` prints, and the `summary.csv` it writes beside.

    Train: 0 [  50/1251 (  4%)]  Loss: 6.94 (6.95)  Time: 0.402s, 2547.26/s  (0.455s, 2250.55/s)  … Data: 0.011 (0.051)
    Test: [  48/48]  Time: 0.090 (0.212)  Loss:  1.1 (1.2)  Acc@1: 75.0000 (71.5240)  Acc@5: …

The figures in brackets are means over the epoch so far; the last line of an epoch has the whole of it. `images_per_s`,
`step_s` and `data_s` are the medians of these over the epochs, without the first where there are more. `summary.csv`
has no times: it gives the accuracy of the run whose log lies in the same folder.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from vitscale.config.imported import ImportedSpec
from vitscale.importers.found import FoundRun, Reading, Tally, series_of
from vitscale.importers.source import Source, lines, plain, printable
from vitscale.records.schema import Aggregate

FORMAT = "timm-log"

_NUMBER = r"(\d{1,12}(?:\.\d+)?)"
_TRAIN = re.compile(
    r"Train: (\d{1,7}) \[ *(\d{1,9})/(\d{1,9}) .{1,200}?"
    rf"Time: *{_NUMBER}s, *{_NUMBER}/s +\({_NUMBER}s, *{_NUMBER}/s\)"
)
_DATA = re.compile(rf"Data: *{_NUMBER} \({_NUMBER}\)")
_TEST = re.compile(rf"Test: \[ *(\d{{1,9}})/(\d{{1,9}})\].{{1,200}}?Acc@1: *{_NUMBER} \( *{_NUMBER}\)")
_MODEL = re.compile(r"Model (\S{1,200}) created, param count: ?(\d{1,15})")
_DISTRIBUTED = re.compile(r"Process \d+, total (\d{1,7})")
_SINGLE = re.compile(r"single process on (\d{1,4}) (?:GPU|device)")
_PRECISIONS = (("AMP not enabled", "fp32"), ("Training in float32", "fp32"), ("mixed precision", "amp"))


class _Epoch(NamedTuple):
    """Running means of the last line of an epoch."""

    step_s: float
    images_per_s: float
    data_s: float | None
    updates: int
    of_updates: int


@dataclass
class _Log:
    source: Source
    line: int = 0
    epochs: dict[int, _Epoch] = field(default_factory=dict)
    accuracies: dict[int, float] = field(default_factory=dict)
    world_size: int | None = None
    model: str | None = None
    parameters: int | None = None
    precision: str | None = None
    engine: str | None = None


def read(files: Sequence[Source]) -> Reading:
    """A run per log."""
    reading = Reading()
    summaries: dict[Path, dict[int, float]] = {}
    logs = []
    for source in files:
        tally = Tally(source.name, source.sha256)
        reading.tallies.append(tally)
        if source.path.suffix.lower() == ".csv":
            summaries[source.path.parent] = _summary(source, tally)
        else:
            logs.append((_log(source, tally), tally))
    for log, tally in logs:
        log.accuracies |= summaries.pop(log.source.path.parent, {})
        run = _run(log, tally)
        reading.runs += [run] if run else []
    for tally, source in zip(reading.tallies, files, strict=True):
        if source.path.parent in summaries and source.path.suffix.lower() == ".csv":
            tally.remarks.append("no log of its run was given from the same folder: its accuracies are left out")
    return reading


def _log(source: Source, tally: Tally) -> _Log:
    log = _Log(source)
    for number, raw in lines(source):
        tally.lines = number
        line = plain(raw)
        if "Train: " in line:
            tally.read += _take_train(log, number, line)
            tally.damaged += not _TRAIN.search(line)
        elif "Test: [" in line:
            tally.read += _take_test(log, line)
            tally.damaged += not _TEST.search(line)
        else:
            tally.read += _take_setting(log, line)
    return log


def _take_train(log: _Log, number: int, line: str) -> bool:
    found = _TRAIN.search(line)
    if found is None:
        return False
    data = _DATA.search(line, found.end())
    step_s, images_per_s = float(found[6]), float(found[7])
    if step_s > 0 and images_per_s > 0:
        told = _Epoch(step_s, images_per_s, float(data[2]) if data else None, int(found[2]) + 1, int(found[3]))
        log.epochs[int(found[1])] = told
        log.line = log.line or number
    return True


def _take_test(log: _Log, line: str) -> bool:
    found = _TEST.search(line)
    if found is None:
        return False
    # The mean of the last line is that of the whole test set.
    if found[1] == found[2] and log.epochs and float(found[4]) <= 100:
        log.accuracies[max(log.epochs)] = float(found[4]) / 100
    return True


def _take_setting(log: _Log, line: str) -> bool:
    model, several, single = _MODEL.search(line), _DISTRIBUTED.search(line), _SINGLE.search(line)
    if model:
        log.model, log.parameters = printable(model[1]), int(model[2])
    if several or single:
        log.world_size = int((several or single)[1])  # type: ignore[index]
    precision = next((name for words, name in _PRECISIONS if words in line), None)
    log.precision = precision or log.precision
    engine = "ddp" if "DistributedDataParallel" in line else None
    log.engine = engine or log.engine
    return bool(model or several or single or precision or engine)


def _summary(source: Source, tally: Tally) -> dict[int, float]:
    """Epoch -> accuracy."""
    found: dict[int, float] = {}
    reader = csv.DictReader(printable(plain(text)) for _, text in lines(source))
    try:
        for row in reader:
            try:
                accuracy = float(row["eval_top1"]) / 100
                epoch = int(row["epoch"])
            except (KeyError, TypeError, ValueError):
                tally.damaged += 1
                continue
            if 0 <= accuracy <= 1:
                found[epoch] = accuracy
                tally.read += 1
    except csv.Error as error:
        tally.remarks.append(f"no CSV from line {reader.line_num} on: {error}")
    tally.lines = reader.line_num
    return found


def _run(log: _Log, tally: Tally) -> FoundRun | None:
    if not log.epochs:
        return None
    if not log.world_size:
        tally.remarks.append("left out: nothing in it tells the world size; put its figures into a table")
        return None
    epochs = [log.epochs[number] for number in sorted(log.epochs)]
    counted = epochs[1:] or epochs
    data = [epoch.data_s for epoch in counted if epoch.data_s is not None]
    spec = ImportedSpec(
        format=FORMAT,
        series=series_of(FORMAT, log.model, log.engine if log.world_size > 1 else None, log.precision),
        world_size=log.world_size,
        model=log.model,
        engine=log.engine,
        precision=log.precision,
        file=log.source.name,
        line=log.line,
        sha256=log.source.sha256,
        row={"epochs": str(len(epochs)), "updates per epoch": str(epochs[-1].of_updates)},
    )
    return FoundRun(
        spec,
        Aggregate(
            step_s=median(epoch.step_s for epoch in counted),
            images_per_s=median(epoch.images_per_s for epoch in counted),
            data_s=median(data) if len(data) == len(counted) else None,
        ),
        evaluations=tuple(_evaluation(epoch, log.accuracies[epoch]) for epoch in sorted(log.accuracies)),
        parameters=log.parameters,
        notes=_notes(counted, len(epochs)),
    )


def _evaluation(epoch: int, accuracy: float) -> dict[str, Any]:
    return {"step": None, "epoch": epoch, "images": None, "test_loss": None, "test_accuracy": round(accuracy, 9)}


def _notes(counted: Sequence[_Epoch], epochs: int) -> dict[str, str]:
    without = ", without the first" if epochs > 1 else ""
    short = sum(epoch.updates < epoch.of_updates for epoch in counted)
    cut = f"; {short} of them cut off before the last update" if short else ""
    return {
        "step_s": f"host timer; median over {len(counted)} of {epochs} epochs{without} of the epoch's mean{cut}",
        "global_batch": "the log tells a throughput and no batch",
    }
