"""`table`: a CSV with one row per run. A row that cannot be meant is refused by file, line and column.

A table is written by hand or by a script of the user's, so that an error in it is an error to mend: nothing is
imported of a table with one, unlike of a log, where damage is counted and passed over.
"""

from __future__ import annotations

import csv
import difflib
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pydantic import ValidationError

from vitscale.config.imported import ImportedSpec
from vitscale.errors import UsageError
from vitscale.importers.found import FoundRun, Reading, Tally
from vitscale.importers.source import Source, lines, printable
from vitscale.records.schema import Aggregate

FORMAT = "table"

_TEXTS = ("series", "device", "model", "dataset", "engine")
_COUNTS = ("nodes", "ranks_per_node", "world_size", "images_per_epoch", "micro_batch", "grad_accum", "global_batch")
_SECONDS = ("epoch_s", "step_s")
_PARTS = ("forward_s", "backward_compute_s", "exposed_comm_s", "optimizer_s")

COLUMNS = (
    "series", "device", "nodes", "ranks_per_node", "world_size", "model", "dataset", "images_per_epoch", "micro_batch",
    "grad_accum", "global_batch", "engine", "zero_stage", "epoch_s", "step_s", "forward_s", "backward_compute_s",
    "exposed_comm_s", "optimizer_s", "device_memory_used_bytes",
)  # fmt: skip
"""The format's columns, in their order; a table may lack any but `REQUIRED`, and may have more."""

FIGURES = (*_SECONDS, *_PARTS, "device_memory_used_bytes")
"""Columns that are measured."""

REQUIRED = ("series", "world_size")

_ALSO = ("precision", "optimizer", "protocol")
# A host timer's figure: it cannot tell communication from waiting for the slowest rank.
_RENAMED = {"exposed_comm_s": "comm_and_wait_s"}


class _Row(NamedTuple):
    line: int
    cells: dict[str, str]


def read(files: Sequence[Source]) -> Reading:
    """Every row as a run.

    Raises:
        UsageError: a table lacks a required column, or a row has a value that cannot be meant or repeats another.
    """
    reading = Reading()
    for source in files:
        header, rows = _rows(source)
        tally = Tally(source.name, source.sha256, lines=len(rows) + 1, read=len(rows) + 1)
        tally.remarks += _remarks(header)
        reading.tallies.append(tally)
        seen: dict[tuple[str, ...], int] = {}
        for row in rows:
            first = seen.setdefault(tuple(row.cells.get(name, "") for name in header), row.line)
            if first != row.line:
                raise UsageError(f"`{source.name}:{row.line}` repeats line {first}", "a run has one row: remove one")
            reading.runs.append(_run(source, row))
    return reading


def _rows(source: Source) -> tuple[list[str], list[_Row]]:
    # strict: an open quote would swallow the rest of the table without a word.
    reader = csv.reader((text for _, text in lines(source)), strict=True)
    try:
        header = [printable(name) for name in next(reader, [])]
        _check_header(source, header)
        return header, list(_cells(source, header, reader))
    except csv.Error as error:
        raise UsageError(f"`{source.name}:{reader.line_num}` is no CSV: {error}") from None


def _cells(source: Source, header: Sequence[str], reader: Iterator[list[str]]) -> Iterator[_Row]:
    for cells in reader:
        line: int = reader.line_num  # type: ignore[attr-defined]
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise UsageError(
                f"`{source.name}:{line}` has {len(cells)} cells, the header {len(header)}",
                "leave a cell blank where a value is unknown; quote text that has a comma in it",
            )
        yield _Row(line, dict(zip(header, map(printable, cells), strict=True)))


def _check_header(source: Source, header: Sequence[str]) -> None:
    for name in header:
        if name and header.count(name) > 1:
            raise UsageError(f"`{source.name}:1` has the column `{name}` twice")
    for name in REQUIRED:
        if name not in header:
            near = difflib.get_close_matches(name, header, 1)
            hint = f"is `{near[0]}` meant?" if near else f"the columns of a table: {', '.join(COLUMNS)}"
            raise UsageError(f"`{source.name}:1` has no column `{name}`", hint)


def _remarks(header: Sequence[str]) -> list[str]:
    """Columns that are kept as words only; one that resembles a known column that is missing is named with it."""
    known = {*COLUMNS, *_ALSO}
    extra = [name for name in header if name and name not in known]
    remarks = [f"kept as words, not read as figures: {', '.join(extra)}"] if extra else []
    for name in extra:
        near = difflib.get_close_matches(name.lower(), [column for column in COLUMNS if column not in header], 1, 0.8)
        remarks += [f"column `{name}`: is `{near[0]}` meant?"] if near else []
    return remarks


def _run(source: Source, row: _Row) -> FoundRun:
    def cell(name: str) -> str | None:
        return row.cells.get(name) or None

    for name in REQUIRED:
        if cell(name) is None:
            hint = "every row needs a series and a world size"
            raise UsageError(f"`{source.name}:{row.line}`: `{name}` is blank", hint)
    counts = {name: _count(source, row.line, name, cell(name)) for name in (*_COUNTS, "zero_stage")}
    figures = {name: _figure(source, row.line, name, cell(name), zero=False) for name in _SECONDS}
    parts = {name: _figure(source, row.line, name, cell(name), zero=True) for name in _PARTS}
    memory = _figure(source, row.line, "device_memory_used_bytes", cell("device_memory_used_bytes"), zero=True)
    try:
        spec = ImportedSpec(
            format=FORMAT,
            file=source.name,
            line=row.line,
            sha256=source.sha256,
            row={name: value for name, value in row.cells.items() if value},
            **{name: cell(name) for name in (*_TEXTS, *_ALSO)},
            **counts,
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"`{source.name}:{row.line}`: `{key}` is {first['input']!r}: {first['msg']}") from None
    aggregate = Aggregate(
        images_per_epoch=counts["images_per_epoch"],
        device_memory_used_bytes=memory,
        **figures,
        **{_RENAMED.get(name, name): value for name, value in parts.items()},
    )
    return FoundRun(spec, aggregate, notes=_notes(aggregate))


def _notes(told: Aggregate) -> dict[str, str]:
    note = "`exposed_comm_s` is a host timer's figure: it holds waiting for the slowest rank too"
    return {} if told.comm_and_wait_s is None else {"comm_exposed": note, "wait": note}


def _count(source: Source, line: int, name: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 16) or (int(text) == 0 and name != "zero_stage"):
        raise UsageError(f"`{source.name}:{line}`: `{name}` is {text!r}, not a whole number above 0", _BLANK)
    return int(text)


def _figure(source: Source, line: int, name: str, text: str | None, *, zero: bool) -> float | None:
    if text is None:
        return None
    try:
        value = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        wanted = "a number of 0 or more" if zero else "a number above 0"
        raise UsageError(f"`{source.name}:{line}`: `{name}` is {text!r}, not {wanted}", _BLANK)
    return value


_BLANK = "leave a cell blank where the value is unknown"
