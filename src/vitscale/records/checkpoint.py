"""Checkpoints as they lie on disk: valid or invisible, and looked at without torch before any rank loads one.

checkpoints/step<n>/
  engine/…          the engine's own files, every rank's
  average.safetensors   moving average of the weights, where there is one
  checkpoint.json   `Checkpoint`, with the sha256 of every other file
  COMPLETE          written last: without it the folder does not count
"""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from vitscale.config.labels import flatten
from vitscale.config.runspec import RunSpec
from vitscale.errors import CheckpointError
from vitscale.records import archives
from vitscale.records.writer import file_digest

CHECKPOINT, COMPLETE, ENGINE, AVERAGE = "checkpoint.json", "COMPLETE", "engine", "average.safetensors"
_FOLDER = re.compile(r"step(\d+)")
_BUILDING = re.compile(r"\.step\d+\.tmp")
_SHOWN = 4
_ASKED = ("world_size", "zero_stage", "precision", "model.name", "data.name")  # what others follow from comes first


class Evaluation(BaseModel):
    """One line of `eval.jsonl`: the whole test set, every image once."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    step: int
    """Optimizer steps taken before it."""
    epoch: float
    """Passes over the training images before it."""
    images: int
    """Training images seen before it."""
    seconds: float
    """Training time before it, over all process starts: steps only, without evaluations and checkpoints."""
    test_images: int
    """Test images counted; the size of the test set."""
    test_loss: float
    """Mean cross-entropy, without label smoothing."""
    test_accuracy: float
    """Fraction of test images classified rightly."""
    average: bool = False
    """Whether the moving average of the weights was evaluated."""


class Checkpoint(BaseModel):
    """`checkpoint.json`."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True, protected_namespaces=())

    schema_version: Literal[1] = 1
    """Version of this format."""
    run_id: str
    """The run."""
    spec: dict[str, Any]
    """Its RunSpec: what has to be equal to go on."""
    step: int
    """Optimizer steps taken."""
    seconds: float
    """Training time so far."""
    evaluations: tuple[Evaluation, ...] = ()
    """All evaluations so far."""
    versions: dict[str, str] = {}
    """Package versions that wrote it."""
    files: dict[str, str] = {}
    """sha256 of every other file, by its path below the folder."""

    @classmethod
    def read(cls, folder: Path) -> Checkpoint:
        """Read `checkpoint.json` alone.

        Raises:
            CheckpointError: it cannot be read or is damaged.
        """
        try:
            return cls.model_validate_json((folder / CHECKPOINT).read_bytes())
        except OSError as error:
            raise _unusable(folder, f"`{CHECKPOINT}` cannot be read: {error.strerror}") from None
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            raise _unusable(folder, f"`{CHECKPOINT}` is damaged: {first['msg']}") from None


def folder_of(root: Path, step: int) -> Path:
    """Where the checkpoint of a step lies below `checkpoints/`."""
    return root / f"step{step:08d}"


def building_of(folder: Path) -> Path:
    """Where a checkpoint lies while it is written."""
    return folder.with_name(f".{folder.name}.tmp")


def leftovers(root: Path) -> list[Path]:
    """What saves and removals that were killed left below `checkpoints/`: it does not count and only takes space."""
    ours = [path for path in _children(root) if _FOLDER.fullmatch(path.name) or _BUILDING.fullmatch(path.name)]
    return [path for path in ours if not (path / COMPLETE).is_file()]


def complete(root: Path) -> list[Path]:
    """Finished checkpoints below `checkpoints/`, oldest first; half-made ones are invisible."""
    found = [(int(match[1]), path) for path in _children(root) if (match := _FOLDER.fullmatch(path.name))]
    return [path for _, path in sorted(found) if (path / COMPLETE).is_file()]


def _children(root: Path) -> list[Path]:
    return list(root.iterdir()) if root.is_dir() else []


def newest(root: Path) -> Path | None:
    """The newest finished checkpoint, or None."""
    found = complete(root)
    return found[-1] if found else None


def inspect(folder: Path) -> Checkpoint:
    """Read `checkpoint.json` and hold every file against it.

    Raises:
        CheckpointError: another user's, writable by others, damaged, incomplete, altered, with links out of it, or with
            a pickle that asks for more than tensors.
    """
    checkpoint = Checkpoint.read(folder)
    _require_own(folder)
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()}
    missing = sorted(checkpoint.files.keys() - there)
    if missing:
        raise _unusable(folder, f"`{missing[0]}` is missing")
    strange = sorted(there - checkpoint.files.keys() - {CHECKPOINT, COMPLETE})
    if strange:
        raise _unusable(folder, f"`{strange[0]}` does not belong to it")
    for name, digest in sorted(checkpoint.files.items()):
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise _unusable(folder, f"`{name}` is not a plain file")
        if file_digest(path) != digest:
            raise _unusable(folder, f"`{name}` is not what was written: its sha256 differs")
        objection = archives.objection(path) if name.startswith(f"{ENGINE}/") else None
        if objection:
            raise _unusable(folder, f"`{name}` {objection}")
    return checkpoint


def require_same_run(folder: Path, checkpoint: Checkpoint, spec: RunSpec) -> None:
    """Refuse to go on as another run.

    Raises:
        CheckpointError: with what differs.
    """
    mine = flatten(spec.model_dump(mode="json"))
    theirs = flatten(checkpoint.spec)
    keys = [key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key)]
    different = sorted(keys, key=lambda key: (key not in _ASKED, key))
    if different:
        shown = [f"`{key}` {_text(theirs.get(key))} -> {_text(mine.get(key))}" for key in different[:_SHOWN]]
        more = f" and {len(different) - _SHOWN} more" if len(different) > _SHOWN else ""
        raise CheckpointError(
            f"checkpoint `{folder.name}` is of another run: {', '.join(shown)}{more}",
            "go on with the same study and world size, or train into another folder with `--out`",
        )


def _text(value: Any) -> str:
    return "unset" if value is None else str(value)


def _require_own(folder: Path) -> None:
    """The engine's files are unpickled by the ranks, so they have to be this user's and nobody else's to write."""
    for path in (folder, *folder.rglob("*")):
        found = path.lstat()
        if found.st_uid != os.geteuid():
            raise _unusable(folder, f"`{path.name}` belongs to another user")
        if not stat.S_ISLNK(found.st_mode) and found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise _unusable(folder, f"`{path.name}` can be written by other users")


def _unusable(folder: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint `{folder.name}` cannot be used: {why}",
        f"remove `{folder}` to go on from the checkpoint before it, or from the start",
    )


def to_json(checkpoint: Checkpoint) -> bytes:
    """The file's bytes."""
    return (json.dumps(checkpoint.model_dump(mode="json"), indent=1, allow_nan=False) + "\n").encode()
