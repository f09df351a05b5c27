"""Launch folders as data, without step lines: no polars here, so that the running side may read what is finished."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from vitscale.config.imported import ImportedSpec
from vitscale.config.runspec import SCHEMA_VERSION as SPEC_VERSION
from vitscale.config.runspec import RunSpec
from vitscale.errors import ResultsError
from vitscale.records.schema import SCHEMA_VERSION, Manifest
from vitscale.records.writer import MANIFEST, RUN

_LAUNCH = re.compile(r"launch(\d+)")

Record = TypeVar("Record", bound=BaseModel)


@dataclass(frozen=True)
class LaunchFolder:
    """One `runs/<run_id>/launch<k>`."""

    path: Path
    run_id: str
    """The run, by its folder's name."""
    launch: int
    """Number of the launch of this run, from 0."""
    spec: RunSpec | None
    """None where the launch ended before `run.json` was written, and where it was imported."""
    manifest: Manifest | None
    """None: the launch is not finished."""
    imported: ImportedSpec | None = None
    """What its source tells, where the launch was imported."""

    @property
    def ok(self) -> bool:
        """Whether the launch counts for figures."""
        return self.manifest is not None and self.manifest.status == "ok"


def read_launches(folder: Path) -> list[LaunchFolder]:
    """Every launch folder below `folder/runs`, by run_id and number.

    Raises:
        ResultsError: a `run.json` or `manifest.json` is damaged, missing beside the other, or of a newer format.
    """
    runs = folder / "runs"
    found = []
    for run in sorted(runs.iterdir()) if runs.is_dir() else ():
        numbered = [(_LAUNCH.fullmatch(path.name), path) for path in run.iterdir()] if run.is_dir() else []
        found += sorted((run.name, int(match[1]), path) for match, path in numbered if match and path.is_dir())
    return [_read_launch(folder, path, run_id, launch) for run_id, launch, path in found]


def read_document(root: Path, path: Path, known: int) -> dict[str, Any] | None:
    """A JSON object, or None where there is no such file.

    Args:
        root: results folder that messages name the file relative to.
        path: the file.
        known: newest `schema_version` that can be read.

    Raises:
        ResultsError: it is not a JSON object, cannot be read, or is of a newer format.
    """
    where = path.relative_to(root)
    repair = _REPAIR if path.parent != root else f"remove `{where}`: the next `vitscale run` writes it again"
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ResultsError(f"cannot read `{where}`: {error.strerror}") from None
    except ValueError as error:
        raise ResultsError(f"`{where}` is damaged: {error}", repair) from None
    if not isinstance(document, dict):
        raise ResultsError(f"`{where}` is damaged: not a JSON object", repair)
    version = document.get("schema_version", known)
    if not isinstance(version, int) or version < 1:
        raise ResultsError(f"`{where}` is damaged: schema_version is {version!r}", repair)
    if version > known:
        raise ResultsError(
            f"`{where}` has schema_version {version}; this vitscale reads up to {known}",
            "it was written by a newer vitscale: pip install --upgrade vitscale",
        )
    return document


_REPAIR = "copy it again from where it was measured, or remove its launch folder and repeat `vitscale run`"


def _read_launch(root: Path, path: Path, run_id: str, launch: int) -> LaunchFolder:
    manifest = read_record(root, path / MANIFEST, Manifest, SCHEMA_VERSION)
    received = read_document(root, path / RUN, SPEC_VERSION)
    if manifest is not None and received is None:
        raise ResultsError(f"`{path.relative_to(root)}` has a {MANIFEST} but no {RUN}", _REPAIR)
    if received is None:
        return LaunchFolder(path, run_id, launch, None, manifest)
    if received.get("source") == "imported":
        imported = _validated(root, path / RUN, ImportedSpec, received)
        return LaunchFolder(path, run_id, launch, None, manifest, imported)
    return LaunchFolder(path, run_id, launch, _validated(root, path / RUN, RunSpec, received), manifest)


def read_record(root: Path, path: Path, kind: type[Record], known: int) -> Record | None:
    """A record, or None where there is no such file; see `read_document`."""
    document = read_document(root, path, known)
    return None if document is None else _validated(root, path, kind, document)


def _validated(root: Path, path: Path, kind: type[Record], document: dict[str, Any]) -> Record:
    try:
        # Strictness of JSON, not of Python: lists are tuples there.
        return kind.model_validate_json(json.dumps(document))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ResultsError(f"`{path.relative_to(root)}` is damaged: `{key}`: {first['msg']}", _REPAIR) from None
