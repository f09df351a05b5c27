"""Writing records so that a crash at any moment leaves either a whole launch or an unfinished one.

Step lines are buffered and written at flushes; `manifest.json` comes last, by `os.replace` after fsync.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from vitscale.errors import ResultsError
from vitscale.records.schema import Manifest, StepRecord

MANIFEST = "manifest.json"
RUN = "run.json"
AGGREGATE = "aggregate.json"
SETTLED = ".settled.json"
"""The manifest as it stands when the steady window is over, until the launch is finished."""


def steps_name(rank: int) -> str:
    """File name of a rank's step lines."""
    return f"steps.rank{rank:03d}.jsonl"


def node_steps_name(node: int) -> str:
    """File name of the step lines of all ranks of a node."""
    return f"steps.node{node:03d}.jsonl"


def write_whole(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, on disk before the name changes: readers see the old file or the new one, never a part.

    Raises:
        ResultsError: the disk is full, the folder is read-only or gone.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ResultsError(f"cannot write `{path}`: {error.strerror}", _hint(error)) from None


def write_json(path: Path, document: Any) -> None:
    """Replace `path` by a JSON document, one key per line; see `write_whole`."""
    write_whole(path, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())


def make_folder(path: Path) -> Path:
    """Make a folder and its parents, readable by the owner only.

    Raises:
        ResultsError: it cannot be made.
    """
    try:
        for folder in [*reversed(path.parents), path]:
            if not folder.is_dir():
                folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ResultsError(f"cannot make folder `{path}`: {error.strerror}", _hint(error)) from None
    return path


_MAY_LEAD_AWAY = ("checkpoints", "export")
"""What a large disk may hold instead. What is written there has names of its own, in folders of its own."""


def require_no_links(folder: Path) -> None:
    """Refuse links at the top of a results folder, and in its report: they may lead anywhere, and be written through.

    Raises:
        ResultsError: naming the link.
    """
    for path in [*folder.glob("*"), *folder.glob("report/*")]:
        if path.is_symlink() and path.name not in _MAY_LEAD_AWAY:
            raise ResultsError(
                f"`{path.relative_to(folder)}` in `{folder}` is a link, and results are written into their own folder",
                "put in its place what it leads to, or remove it",
            )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Finish a launch: the manifest with the sha256 of every other file, the last thing ever written there."""
    files = {path.name: file_digest(path) for path in sorted(folder.iterdir()) if not path.name.startswith(".")}
    write_json(folder / MANIFEST, manifest.model_copy(update={"files": files}).model_dump(mode="json"))
    (folder / SETTLED).unlink(missing_ok=True)  # until then the launch can be finished by it


def file_digest(path: Path) -> str:
    """sha256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class StepWriter:
    """Appends step lines of one rank, or of one node. Nothing reaches the disk between flushes: no step is slowed.

    Raises:
        ResultsError: from any of its methods, the disk is full or the folder is gone.
    """

    def __init__(self, folder: Path, rank: int = 0, *, node: int | None = None) -> None:
        name = steps_name(rank) if node is None else node_steps_name(node)
        self._file: BinaryIO = (folder / name).open("ab")

    def write(self, records: Iterable[StepRecord]) -> None:
        """Append lines and hand them to the kernel."""
        self.append("".join(_line(record) for record in records).encode())

    def append(self, lines: bytes) -> None:
        """The same of lines that are text already."""
        with self._told():
            self._file.write(lines)
            self._file.flush()

    def sync(self) -> None:
        """fsync."""
        with self._told():
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """fsync and close; closed also where the disk is full."""
        with self._told():
            try:
                os.fsync(self._file.fileno())
            finally:
                self._file.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ResultsError(f"cannot write `{self._file.name}`: {error.strerror}", _hint(error)) from None


def append_lines(path: Path, documents: Iterable[dict[str, Any]]) -> None:
    """Append JSON lines, on disk when this returns."""
    with path.open("ab") as file:
        file.write(
            "".join(json.dumps(one, separators=(",", ":"), allow_nan=False) + "\n" for one in documents).encode()
        )
        file.flush()
        os.fsync(file.fileno())


def _line(record: StepRecord) -> str:
    fields = record._asdict()
    if record.comm_and_wait_s is None:
        del fields["comm_and_wait_s"]
    return json.dumps(fields, separators=(",", ":"), allow_nan=False) + "\n"


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hint(error: OSError) -> str:
    if error.errno == 28:
        return "free some disk space; the same command goes on with what is missing"
    return "`--out` names another folder"
