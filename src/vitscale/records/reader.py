"""Reading a results folder whole: what every launch received, how it ended, and its step lines as one table.

A launch that was cut off is read as far as it goes and flagged; a record that is damaged where no crash can damage it
is an error that names the line, because figures made from the rest would be figures of something else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
from pydantic import BaseModel, ValidationError

from vitscale.config.imported import ImportedSpec
from vitscale.config.runspec import RunSpec
from vitscale.errors import ResultsError
from vitscale.records.collectives import COLLECTIVES, CollectiveRecord
from vitscale.records.evaluations import EVALUATIONS, Scored, read_evaluations
from vitscale.records.launches import LaunchFolder, read_document, read_launches, read_record
from vitscale.records.layers import ROOFLINE, LayerRecord
from vitscale.records.links import LINKS, LinkBenchmark
from vitscale.records.samples import Sample
from vitscale.records.schema import SCHEMA_VERSION, Aggregate, Manifest
from vitscale.records.steps import StepFile, damaged, examine, parse_lines, read_steps
from vitscale.records.writer import AGGREGATE, RUN, file_digest

RESOLVED = "resolved.json"
PLAN = "plan.json"
ROUNDS = "rounds"

_DOCUMENT_VERSION = 1
_WHOLE = (RUN, EVALUATIONS, AGGREGATE, COLLECTIVES)

Line = TypeVar("Line", bound=BaseModel)


@dataclass(frozen=True)
class Launch:
    """One launch, finished or not."""

    run_id: str
    launch: int
    spec: RunSpec | ImportedSpec | None
    """None where the launch ended before `run.json` was written."""
    manifest: Manifest | None
    """None: the launch is not finished."""
    evaluations: tuple[Scored, ...] = ()
    """In order; none where nothing was evaluated."""
    torn: tuple[str, ...] = ()
    """Files whose last line was cut off and is not counted."""
    altered: tuple[str, ...] = ()
    """Files that are not, or no longer, what the manifest's sha256 says."""
    aggregate: Aggregate | None = None
    """Figures of the whole launch, where it was imported."""
    samples: tuple[Sample, ...] = ()
    """Of the devices, by node and time."""
    collectives: tuple[CollectiveRecord, ...] = ()
    """Of the steady window, the largest first; none where the launch had none, or did not time them."""
    layers: tuple[LayerRecord, ...] = ()
    """Forward passes by class of layer, in the order of computation; none where they were not timed."""

    @property
    def ok(self) -> bool:
        """Whether the launch counts for figures."""
        return self.manifest is not None and self.manifest.status == "ok"

    @property
    def test_accuracy(self) -> float | None:
        """Fraction, of the last evaluation; None where nothing was evaluated."""
        return self.evaluations[-1].test_accuracy if self.evaluations else None


@dataclass(frozen=True)
class Results:
    """A results folder."""

    folder: Path
    launches: tuple[Launch, ...]
    """By run_id and number."""
    steps: pl.DataFrame
    """Every step line: the fields of `StepRecord` and `launch_index`, the position in `launches`."""
    resolved: dict[str, Any]
    """`resolved.json`, the study after overrides; empty where there is none."""
    plan: dict[str, Any]
    """`plan.json`: `runs`, `skipped`, `notes`; empty where there is none."""
    links: dict[str, LinkBenchmark] = field(default_factory=dict)
    """Round -> what its links gave when nothing else used them, where that was timed."""


def read_results(folder: Path) -> Results:
    """Read a results folder.

    Raises:
        ResultsError: it is no results folder, or a record in it is damaged or of a newer format.
    """
    if not (folder / RESOLVED).is_file() and not (folder / "runs").is_dir():
        raise ResultsError(
            f"`{folder}` is not a results folder: it has neither `{RESOLVED}` nor `runs/`",
            "give the folder that `vitscale run` wrote, by default results/<study name>",
        )
    resolved = read_document(folder, folder / RESOLVED, _DOCUMENT_VERSION) or {}
    plan = read_document(folder, folder / PLAN, _DOCUMENT_VERSION) or {}
    folders = read_launches(folder)
    files = [examine(path, index) for index, launch in enumerate(folders) for path in _step_paths(launch.path)]
    steps = read_steps(files, folder)
    by_launch: dict[int, list[StepFile]] = {}
    for file in files:
        by_launch.setdefault(file.launch_index, []).append(file)
    launches = tuple(_launch(folder, launch, by_launch.get(index, [])) for index, launch in enumerate(folders))
    return Results(folder, launches, steps, resolved, plan, _links(folder, launches))


def _links(root: Path, launches: Sequence[Launch]) -> dict[str, LinkBenchmark]:
    rounds = {one.manifest.round for one in launches if one.manifest is not None and one.manifest.round is not None}
    read = {
        name: read_record(root, root / ROUNDS / name / LINKS, LinkBenchmark, SCHEMA_VERSION) for name in sorted(rounds)
    }
    return {name: links for name, links in read.items() if links is not None}


def _step_paths(folder: Path) -> list[Path]:
    return sorted(folder.glob("steps.*.jsonl"))


def _launch(root: Path, launch: LaunchFolder, files: list[StepFile]) -> Launch:
    sampled = [examine(path, 0) for path in sorted(launch.path.glob("devices.*.jsonl"))]
    return Launch(
        launch.run_id,
        launch.launch,
        launch.spec or launch.imported,
        launch.manifest,
        read_evaluations(root, launch.path / EVALUATIONS),
        torn=tuple(file.path.name for file in (*files, *sampled) if file.torn),
        altered=_altered(launch, {file.path.name: file.sha256 for file in (*files, *sampled)}),
        aggregate=read_record(root, launch.path / AGGREGATE, Aggregate, SCHEMA_VERSION),
        samples=tuple(sample for file in sampled for sample in _lines(root, file.path, Sample)),
        collectives=tuple(_lines(root, launch.path / COLLECTIVES, CollectiveRecord)),
        layers=tuple(_lines(root, launch.path / ROOFLINE, LayerRecord)),
    )


def _altered(launch: LaunchFolder, digests: dict[str, str]) -> tuple[str, ...]:
    """Files figures come from whose digest is not the manifest's. Traces are large and are not checked here."""
    if launch.manifest is None:
        return ()
    digests = dict(digests)
    for name in _WHOLE:
        if (launch.path / name).is_file():
            digests[name] = file_digest(launch.path / name)
    told = launch.manifest.files
    checked = [name for name in told if name in _WHOLE or name.startswith(("steps.", "devices."))]
    return tuple(sorted(name for name in checked if digests.get(name) != told[name]))


def _lines(root: Path, path: Path, kind: type[Line]) -> Iterator[Line]:
    """The records of a file; none where there is no such file."""
    if not path.is_file():
        return
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1].splitlines()
    try:
        found = [kind.model_validate_json(line) for line in whole if line.strip()]
    except ValidationError:
        found = [*_checked_lines(data, str(path.relative_to(root)), kind)]
    yield from found


def _checked_lines(data: bytes, where: str, kind: type[Line]) -> Iterator[Line]:
    """The same, slowly: the line that is damaged is named."""
    for number, document in parse_lines(data, where):
        try:
            yield kind.model_validate(document)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            field = ".".join(str(part) for part in first["loc"])
            raise damaged(where, number, f"`{field}`: {first['msg']}") from None
