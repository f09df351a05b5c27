"""Step lines of many launches as one table. A fast path reads all files; a slow one names the line that is damaged."""

from __future__ import annotations

import glob
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from vitscale.errors import ResultsError
from vitscale.records.schema import WINDOWS

SCHEMA: dict[str, Any] = {
    "step": pl.Int64,
    "window": pl.String,
    "rank": pl.Int64,
    "loss": pl.Float64,
    "images": pl.Int64,
    "step_s": pl.Float64,
    "data_s": pl.Float64,
    "forward_s": pl.Float64,
    "backward_s": pl.Float64,
    "optimizer_s": pl.Float64,
    "comm_exposed_s": pl.Float64,
    "wait_s": pl.Float64,
    "comm_s": pl.Float64,
    "comm_overlapped_s": pl.Float64,
    "launch_gap_s": pl.Float64,
    "late_s": pl.Float64,
    "comm_and_wait_s": pl.Float64,
}
"""Columns of the table and the fields of `StepRecord`, in their order (a test compares)."""

_WINDOW = pl.Enum(WINDOWS)
_CHUNK_BYTES = 1 << 20
_BATCH_BYTES = 64 << 20
"""Text of step lines that is held at once; a table of them takes a third of it."""

_COUNTS = ("step", "rank")
_MEASURES = tuple(name for name, kind in SCHEMA.items() if kind == pl.Float64)


class StepFile(NamedTuple):
    """One file of step lines and what its bytes tell before any is parsed."""

    path: Path
    launch_index: int
    """Position of its launch in the caller's list."""
    sha256: str
    lines: int
    """Newlines in it."""
    size_bytes: int
    torn: bool
    """The last line has no newline: the writer was cut off in it, and it is not read."""


def examine(path: Path, launch_index: int) -> StepFile:
    """Read a file once for its digest and its last byte.

    Raises:
        ResultsError: it cannot be read.
    """
    digest, lines, size_bytes, last = hashlib.sha256(), 0, 0, b"\n"
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                lines += chunk.count(b"\n")
                size_bytes += len(chunk)
                last = chunk[-1:]
    except OSError as error:
        raise ResultsError(f"cannot read `{path}`: {error.strerror}") from None
    return StepFile(path, launch_index, digest.hexdigest(), lines, size_bytes, torn=last != b"\n")


def read_steps(files: Sequence[StepFile], root: Path) -> pl.DataFrame:
    """All step lines, with `launch_index` added; torn last lines are left out.

    Raises:
        ResultsError: a line that is not the last is damaged; named as `file:line` relative to `root`.
    """
    frame = _fast([file for file in files if not file.torn])
    if frame is None:
        return _slow(files, root)
    torn = [file for file in files if file.torn]
    return pl.concat([frame, _slow(torn, root)]) if torn else frame


def parse_lines(data: bytes, where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number (from 1) and object of each whole line; text after the last newline is no line.

    Raises:
        ResultsError: a line is not a JSON object.
    """
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), start=1):
        if not line.strip():
            continue
        try:
            document = json.loads(line, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise damaged(where, number, str(error)) from None
        if not isinstance(document, dict):
            raise damaged(where, number, "not a JSON object")
        yield number, document


def _fast(files: Sequence[StepFile]) -> pl.DataFrame | None:
    """All files, or None where any line is not as it should be."""
    tables = [_table([])]
    for batch in _batches(files):
        table = _scan(batch)
        if table is None:
            return None
        tables.append(table)
    return pl.concat(tables)


def _batches(files: Sequence[StepFile]) -> Iterator[list[StepFile]]:
    """Files in their order, so many at once that their text fits into `_BATCH_BYTES`, and one at least."""
    batch: list[StepFile] = []
    size_bytes = 0
    for file in files:
        if batch and size_bytes + file.size_bytes > _BATCH_BYTES:
            yield batch
            batch, size_bytes = [], 0
        batch.append(file)
        size_bytes += file.size_bytes
    if batch:
        yield batch


def _scan(files: Sequence[StepFile]) -> pl.DataFrame | None:
    # polars reads a path as a pattern: a folder named `a[1]` would match nothing, and say nothing.
    paths = [glob.escape(str(file.path)) for file in files]
    try:
        launches = pl.DataFrame(
            {"file": [str(file.path) for file in files], "launch_index": [file.launch_index for file in files]},
            schema={"file": pl.String, "launch_index": pl.Int64},
        )
        frame = pl.scan_ndjson(paths, schema=SCHEMA, include_file_paths="file").collect()
    except (pl.exceptions.PolarsError, UnicodeEncodeError):  # the latter: a path that is not UTF-8
        return None
    sound = frame.select(
        pl.all_horizontal(
            *(pl.col(name).is_not_null() & (pl.col(name) >= 0) for name in _COUNTS),
            pl.col("images").is_null() | (pl.col("images") >= 0),
            *(pl.col(name).is_null() | pl.col(name).is_finite() for name in _MEASURES),
            pl.col("window").is_in(WINDOWS),
            pl.col("step_s") > 0,
        ).all(ignore_nulls=False)
    ).item()
    if not sound or frame.height != sum(file.lines for file in files):
        return None
    return _compact(frame.join(launches, on="file", how="inner", maintain_order="left").drop("file"))


def _compact(table: pl.DataFrame) -> pl.DataFrame:
    """The same in less memory."""
    return table.with_columns(pl.col("window").cast(_WINDOW))


def _slow(files: Sequence[StepFile], root: Path) -> pl.DataFrame:
    rows: list[tuple[Any, ...]] = []
    for file in files:
        where = str(file.path.relative_to(root))
        for number, document in parse_lines(file.path.read_bytes(), where):
            problem = _problem(document)
            if problem:
                raise damaged(where, number, problem)
            rows.append((*(document.get(name) for name in SCHEMA), file.launch_index))
    return _table(rows)


def _table(rows: list[tuple[Any, ...]]) -> pl.DataFrame:
    return _compact(pl.DataFrame(rows, schema={**SCHEMA, "launch_index": pl.Int64}, orient="row", strict=False))


def _problem(document: dict[str, Any]) -> str | None:
    """What is wrong with a step line's fields, or None. Fields that are not known are a newer writer's."""
    for name in (*_COUNTS, "images"):
        value = document.get(name)
        # A line without `images` is damaged; `null` is an imported log that does not tell.
        if name == "images" and name in document and value is None:
            continue
        if type(value) is not int or value < 0:
            return f"`{name}` is {value!r}"
    for name in _MEASURES:
        value = document.get(name)
        if value is not None and (type(value) not in (int, float) or not math.isfinite(value)):
            return f"`{name}` is {value!r}"
    if document.get("window") not in WINDOWS:
        return f"`window` is {document.get('window')!r}"
    step_s = document.get("step_s")
    return None if step_s is not None and step_s > 0 else f"`step_s` is {step_s!r}"


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number in JSON")


def damaged(where: str, number: int, problem: str) -> ResultsError:
    """The error for a line that no crash can have left as it is."""
    return ResultsError(
        f"`{where}:{number}` is damaged: {problem}",
        "copy the file again from where it was measured, or remove its launch folder and repeat `vitscale run`",
    )
