"""Writing and loading checkpoints on all ranks. What one is, and whether it can be used, is in `records.checkpoint`."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from vitscale.errors import CheckpointError
from vitscale.records import checkpoint as on_disk
from vitscale.records.checkpoint import AVERAGE, CHECKPOINT, COMPLETE, ENGINE, Checkpoint
from vitscale.records.writer import file_digest, make_folder, sync_folder, write_whole
from vitscale.worker.distributed import Ranks, barrier, gathered
from vitscale.worker.engines import Engine


def save(root: Path, checkpoint: Checkpoint, engine: Engine, average: dict[str, Tensor] | None, ranks: Ranks) -> None:
    """Write a checkpoint: into a folder that does not count yet, all files on disk, the marker last.

    Args:
        root: `checkpoints/`.
        checkpoint: without `files`.
        engine: every rank saves its part.
        average: moving average of the weights, written by rank 0.
        ranks: all of them take part.
    """
    folder = on_disk.folder_of(root, checkpoint.step)
    building = on_disk.building_of(folder)
    if ranks.rank == 0:
        make_folder(root)
        for leftover in (*on_disk.leftovers(root), folder):
            _remove(leftover)
        make_folder(building / ENGINE)
    barrier()
    engine.save(building / ENGINE)
    if ranks.rank == 0 and average is not None:
        save_file({name: value.contiguous() for name, value in average.items()}, building / AVERAGE)
    barrier()
    files = _secured(building, ranks)
    if ranks.rank == 0:
        _finish(building, folder, checkpoint.model_copy(update={"files": files}))
    barrier()


def _secured(building: Path, ranks: Ranks) -> dict[str, str]:
    """Bring every file to the disk and take its sha256, each rank of its share of them; all digests, on every rank."""
    paths = sorted(path for path in building.rglob("*") if not path.is_dir())[ranks.rank :: ranks.world_size]
    with ThreadPoolExecutor(1) as pool:
        synced = pool.map(_sync, paths)  # the disk works while the digests are computed
        own = {str(path.relative_to(building)): file_digest(path) for path in paths}
        list(synced)
    return dict(sorted(item for part in gathered(own, ranks) for item in part.items()))


def _sync(path: Path) -> None:
    path.chmod(0o600)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _finish(building: Path, folder: Path, checkpoint: Checkpoint) -> None:
    for path in (one for one in building.rglob("*") if one.is_dir()):
        sync_folder(path)
    write_whole(building / CHECKPOINT, on_disk.to_json(checkpoint))
    building.rename(folder)
    sync_folder(folder.parent)
    write_whole(folder / COMPLETE, b"")


def prune(root: Path, keep: int, best: int | None) -> None:
    """Remove all but the newest `keep` checkpoints and that of step `best`. The marker goes first."""
    kept = {on_disk.folder_of(root, best)} if best is not None else set()
    for folder in on_disk.complete(root)[:-keep]:
        if folder not in kept:
            _remove(folder)


def _remove(folder: Path) -> None:
    (folder / COMPLETE).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def load(folder: Path, engine: Engine) -> dict[str, Tensor] | None:
    """Load a checkpoint that was inspected: the engine's part, and the moving average where there is one.

    Raises:
        CheckpointError: the engine cannot read it.
    """
    try:
        engine.load(folder / ENGINE)
    except Exception as error:
        # Whatever a reader of damaged or foreign bytes raises, the checkpoint is what is wrong.
        raise CheckpointError(
            f"checkpoint `{folder.name}` cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    path = folder / AVERAGE
    return load_file(path) if path.exists() else None
