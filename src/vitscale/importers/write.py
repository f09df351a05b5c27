"""Importing: from files to launch folders that analysis and report read like any other."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from vitscale.errors import ResultsError, UsageError
from vitscale.importers.found import FoundRun, Reading, Tally
from vitscale.importers.source import Source, sources
from vitscale.importers.table import COLUMNS
from vitscale.records.launches import read_document, read_launches, read_record
from vitscale.records.schema import SCHEMA_VERSION, Aggregate, Layout, Manifest
from vitscale.records.writer import (
    AGGREGATE,
    RUN,
    StepWriter,
    make_folder,
    steps_name,
    write_json,
    write_manifest,
    write_whole,
)

FORMATS = {
    "table": "vitscale.importers.table",
    "deepspeed-log": "vitscale.importers.deepspeed_log",
    "epoch-csv": "vitscale.importers.epoch_csv",
    "timm-log": "vitscale.importers.timm_log",
    "torchtitan-log": "vitscale.importers.torchtitan_log",
}
"""Name of each format and its importer, a module with `read`."""

TABLE = "imported.csv"
"""Every run without step lines as a row of the table format: what its source did not tell can be filled in there."""

_VERSION = 1


class Outcome(NamedTuple):
    """What an import did."""

    tallies: tuple[Tally, ...]
    runs: int
    """Runs in the files."""
    series: int
    """Series they are of."""
    new: int
    """Runs that were not in the folder before."""


def read_files(form: str, paths: Sequence[Path]) -> Reading:
    """Every run in the files; nothing is written.

    Raises:
        UsageError: there is no such format, a file cannot be read, or a table has an error.
    """
    if form not in FORMATS:
        raise UsageError(f"there is no format `{form}`", f"one of {', '.join(FORMATS)}")
    importer: Callable[[Sequence[Source]], Reading] = import_module(FORMATS[form]).read
    return importer(sources(paths))


def import_files(form: str, paths: Sequence[Path], folder: Path) -> Outcome:
    """Write the runs in the files into a results folder, new or of earlier imports. What is there already stays.

    Raises:
        UsageError: as `read_files`; or there is no run in the files.
        ResultsError: the folder holds other records, or cannot be written.
    """
    reading = read_files(form, paths)
    if not reading.runs:
        raise UsageError(
            f"no run of the format `{form}` in {'; '.join(tally.words() for tally in reading.tallies) or 'no file'}",
            f"is it of another format? {', '.join(FORMATS)}",
        )
    held = _held(folder)
    make_folder(folder)
    tallies = {tally.sha256: tally for tally in reading.tallies}
    missing = [run for run in reading.runs if (run.spec.sha256, run.spec.line) not in held]
    for run in missing:
        _write_run(folder, run, tallies[run.spec.sha256])
    _write_documents(folder, form, missing, reading.tallies)
    series = {run.spec.series for run in reading.runs}
    return Outcome(tuple(reading.tallies), len(reading.runs), len(series), len(missing))


def _held(folder: Path) -> set[tuple[str, int]]:
    """sha256 and line of the runs that earlier imports finished."""
    launches = [launch for launch in read_launches(folder) if launch.manifest is not None]
    found = {launch.manifest.source for launch in launches if launch.manifest is not None}
    if found - {"imported"}:
        raise ResultsError(
            f"`{folder}` holds {' and '.join(sorted(found))} records, and these are imported: never in one folder",
            "`--out` names another folder",
        )
    return {(one.imported.sha256, one.imported.line) for one in launches if one.imported is not None}


def _write_run(folder: Path, run: FoundRun, tally: Tally) -> None:
    spec = run.spec
    launch = make_folder(folder / "runs" / spec.run_id / "launch0")
    write_json(launch / RUN, spec.model_dump(mode="json"))
    if run.aggregate is not None:
        write_json(launch / AGGREGATE, run.aggregate.model_dump(mode="json"))
    for rank in sorted({record.rank for record in run.steps}):
        # What an import that was cut off left there is no part of this one.
        (launch / steps_name(rank)).unlink(missing_ok=True)
        writer = StepWriter(launch, rank)
        writer.write(record for record in run.steps if record.rank == rank)
        writer.close()
    if run.evaluations:
        text = "".join(json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n" for line in run.evaluations)
        write_whole(launch / "eval.jsonl", text.encode())
    write_manifest(launch, _manifest(run, tally))


def _manifest(run: FoundRun, tally: Tally) -> Manifest:
    spec = run.spec
    origin = {"file": spec.file, "line": spec.line, "sha256": spec.sha256}
    counts = {"lines": tally.lines, "read": tally.read, "damaged": tally.damaged, "other": tally.other}
    return Manifest(
        run_id=spec.run_id,
        launch=0,
        round=None,
        status="ok",
        source="imported",
        started=None,
        versions=run.versions,
        layout=Layout(world_size=spec.world_size, nodes=spec.nodes, ranks_per_node=spec.ranks_per_node, backend=None),
        steps=max((record.step + 1 for record in run.steps), default=0),
        parameters=run.parameters,
        notes={**run.notes, "origin": origin, "source_lines": counts},
    )


def _write_documents(folder: Path, form: str, runs: Sequence[FoundRun], tallies: Sequence[Tally]) -> None:
    """The documents at the top of the folder, earlier imports' entries first."""
    resolved = read_document(folder, folder / "resolved.json", _VERSION) or {}
    imported: dict[str, Any] = {entry["sha256"]: entry for entry in resolved.get("imported", ())}
    imported |= {tally.sha256: {"format": form, **asdict(tally), "other": tally.other} for tally in tallies}
    name = resolved.get("name") or folder.resolve().name
    plan = read_document(folder, folder / "plan.json", _VERSION) or {}
    planned = [
        {"run_id": run.spec.run_id, "series": run.spec.series, "spec": run.spec.model_dump(mode="json")} for run in runs
    ]
    write_whole(folder / "study.toml", _STUDY.encode())
    write_json(folder / "resolved.json", {**_HEAD, "name": name, "question": "", "imported": list(imported.values())})
    write_json(folder / "plan.json", {**_HEAD, "runs": [*plan.get("runs", ()), *planned], "skipped": [], "notes": []})
    write_whole(folder / TABLE, _table(folder).encode())


_HEAD = {"schema_version": _VERSION}
_STUDY = "# No study was run here: `vitscale import` wrote these records. resolved.json names their sources.\n"


def _table(folder: Path) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for launch in read_launches(folder):
        told = read_record(folder, launch.path / AGGREGATE, Aggregate, SCHEMA_VERSION)
        if launch.imported is None or told is None:
            continue
        figures = told.model_dump(mode="json", exclude={"images_per_epoch"})
        cells = {**launch.imported.told(), **figures, "series": launch.imported.series}
        writer.writerow([cells.get(_FIGURES.get(name, name)) for name in COLUMNS])
    return text.getvalue()


_FIGURES = {"exposed_comm_s": "comm_and_wait_s"}
