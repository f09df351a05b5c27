"""`epoch-csv`: one line per rank and epoch, as the training scripts beside arXiv 2602.21081 write `metrics.csv`.

    Timestamp,Rank,Epoch,Computation_Time,GPU_ID,GPU_Name,GPU_Load,GPU_Free_Mem_MB,GPU_Used_Mem_MB,…

It tells neither the batch nor the images of an epoch, so there is no throughput in it: `imported.csv` beside the
records is a table in which these can be filled in, and which `table` imports. A script appends to the file it finds: a
rank and epoch seen before begin a new run.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

from vitscale.config.imported import ImportedSpec
from vitscale.errors import UsageError
from vitscale.importers.found import FoundRun, Reading, Tally, series_of
from vitscale.importers.source import Source, lines, plain, printable
from vitscale.records.schema import Aggregate

FORMAT = "epoch-csv"

_NEEDED = ("Rank", "Epoch", "Computation_Time")
_MOST_RANKS = 1 << 20
# GPUtil, which the scripts use, prints nvidia-smi's MiB.
_MEMORY_UNIT_BYTES = 2**20


@dataclass
class _Section:
    """One run of a file."""

    line: int
    epoch_s: dict[tuple[int, int], float] = field(default_factory=dict)
    """(rank, epoch) -> seconds."""
    devices: set[str] = field(default_factory=set)
    memory_bytes: float | None = None


def read(files: Sequence[Source]) -> Reading:
    """Every run in the files.

    Raises:
        UsageError: a file has no such header.
    """
    reading = Reading()
    for source in files:
        tally = Tally(source.name, source.sha256)
        reading.tallies.append(tally)
        reading.runs += [_run(source, section) for section in _sections(source, tally)]
    return reading


def _sections(source: Source, tally: Tally) -> Iterator[_Section]:
    header: list[str] | None = None
    section = _Section(2)
    for number, raw in lines(source):
        tally.lines = number
        cells = [printable(cell) for cell in _split(plain(raw))]
        if set(_NEEDED) <= set(cells):
            header = cells
            tally.read += 1
            continue
        if header is None:
            continue
        row = _row(header, cells)
        if row is None:
            tally.damaged += any(cells)
            continue
        rank, epoch, seconds = row
        if (rank, epoch) in section.epoch_s:
            yield section
            section = _Section(number)
        tally.read += 1
        _take(section, rank, epoch, seconds, dict(zip(header, cells, strict=True)))
    if header is None:
        raise UsageError(
            f"`{source.name}` has no header with {', '.join(_NEEDED)}",
            "is it of another format? vitscale import --help",
        )
    if section.epoch_s:
        yield section


def _split(line: str) -> list[str]:
    try:
        return next(csv.reader([line]), [])
    except csv.Error:
        return ["damaged"]


def _row(header: Sequence[str], cells: Sequence[str]) -> tuple[int, int, float] | None:
    """Rank, epoch and seconds, or None where the line is cut off or no such line."""
    if len(cells) != len(header):
        return None
    row = dict(zip(header, cells, strict=True))
    try:
        rank, epoch, seconds = int(row["Rank"]), int(row["Epoch"]), float(row["Computation_Time"])
    except ValueError:
        return None
    sound = 0 <= rank < _MOST_RANKS and epoch >= 0 and math.isfinite(seconds) and seconds > 0
    return (rank, epoch, seconds) if sound else None


def _take(section: _Section, rank: int, epoch: int, seconds: float, row: dict[str, str]) -> None:
    section.epoch_s[rank, epoch] = seconds
    if row.get("GPU_Name"):
        section.devices.add(row["GPU_Name"])
    try:
        used_bytes = float(row.get("GPU_Used_Mem_MB", "")) * _MEMORY_UNIT_BYTES
    except ValueError:
        return
    if math.isfinite(used_bytes) and used_bytes >= 0:
        section.memory_bytes = max(section.memory_bytes or 0.0, used_bytes)


def _run(source: Source, section: _Section) -> FoundRun:
    ranks = {rank for rank, _ in section.epoch_s}
    epochs = sorted({epoch for _, epoch in section.epoch_s})
    slowest = [max(value for (_, at), value in section.epoch_s.items() if at == epoch) for epoch in epochs]
    counted = slowest[1:] or slowest
    device = " and ".join(sorted(section.devices)) or None
    spec = ImportedSpec(
        format=FORMAT,
        series=series_of(FORMAT, device),
        world_size=max(ranks) + 1,
        device=device,
        file=source.name,
        line=section.line,
        sha256=source.sha256,
        row={"epochs": ", ".join(f"{seconds:.3f}" for seconds in slowest[:100])},
    )
    missing = max(ranks) + 1 - len(ranks)
    return FoundRun(
        spec,
        Aggregate(epoch_s=median(counted), device_memory_used_bytes=section.memory_bytes),
        notes={
            "epoch_s": f"`Computation_Time` of the slowest rank, median of {len(counted)} of {len(epochs)} epochs"
            + (", without the first" if len(epochs) > 1 else ""),
            "images_per_s": "the format tells neither the images of an epoch nor the batch",
            "world_size": f"highest rank and 1; {missing} of its ranks wrote no line" if missing else "ranks seen",
        },
    )
