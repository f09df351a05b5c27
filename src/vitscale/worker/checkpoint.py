"""Writing and loading checkpoints on all ranks. What one is, and whether it can be used, is in `records.checkpoint`."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from vitscale.errors import CheckpointError
from vitscale.records import checkpoint as on_disk
from vitscale.records.checkpoint import AVERAGE, CHECKPOINT, COMPLETE, ENGINE, Checkpoint
from vitscale.records.writer import make_folder, sync_folder, write_whole
from vitscale.worker.distributed import Ranks, barrier
from vitscale.worker.engines import Engine

_POLL_S = 0.01


class Saver:
    """The checkpoints of one training, one at a time.

    Ranks write their files; the disk and the digests follow in a thread of each rank while training goes on, and only
    then does the checkpoint count.

    Args:
        root: `checkpoints/`.
        keep: how many of the newest stay.
        ranks: all of them take part in every call.
    """

    def __init__(self, root: Path, keep: int, ranks: Ranks) -> None:
        self._root, self._keep, self._ranks = root, keep, ranks
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._under_way: Future[None] | None = None

    def save(
        self, checkpoint: Checkpoint, engine: Engine, average: dict[str, Tensor] | None = None, best: int | None = None
    ) -> None:
        """Write the files, and let the rest follow.

        Args:
            checkpoint: without `files`.
            engine: every rank saves its part.
            average: moving average of the weights, written by rank 0.
            best: step of the checkpoint that stays whatever its age.

        Raises:
            OSError: the checkpoint before this one could not be brought to the disk.
        """
        self.settle()
        building = on_disk.building_of(on_disk.folder_of(self._root, checkpoint.step))
        if self._ranks.rank == 0:
            make_folder(self._root)
            for leftover in (*on_disk.leftovers(self._root), on_disk.folder_of(self._root, checkpoint.step)):
                _remove(leftover)
            make_folder(building / ENGINE)
        barrier()
        engine.save(building / ENGINE)
        if self._ranks.rank == 0 and average is not None:
            save_file({name: value.contiguous() for name, value in average.items()}, building / AVERAGE)
        barrier()
        files = sorted(path for path in building.rglob("*") if not path.is_dir())
        barrier()  # nobody's digests are among them
        self._under_way = self._pool.submit(self._secure, building, files, checkpoint, best)

    def settle(self) -> None:
        """Wait until the last checkpoint counts.

        Raises:
            OSError: it could not be brought to the disk.
        """
        if self._under_way is not None:
            self._under_way.result()
            self._under_way = None

    def _secure(self, building: Path, files: list[Path], checkpoint: Checkpoint, best: int | None) -> None:
        """Bring this rank's share of the files to the disk and leave their digests; rank 0 finishes when all did."""
        rank, world_size = self._ranks.rank, self._ranks.world_size
        left = _digests_of(building, rank)
        try:
            own = {str(path.relative_to(building)): _on_disk(path) for path in files[rank::world_size]}
            left.with_suffix(".tmp").write_text(json.dumps(own))
            left.with_suffix(".tmp").replace(left)  # the last touch: rank 0 may rename the folder now
        except OSError:
            left.touch()  # empty: rank 0 shall not wait for it
            raise
        if rank == 0:
            digests = {name: digest for one in range(world_size) for name, digest in _taken(building, one).items()}
            _finish(building, checkpoint.model_copy(update={"files": dict(sorted(digests.items()))}))
            _prune(self._root, self._keep, best)


def _on_disk(path: Path) -> str:
    """Bring a file to the disk; its sha256."""
    path.chmod(0o600)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return digest


def _digests_of(building: Path, rank: int) -> Path:
    return building / f".digests.rank{rank:03d}.json"


def _taken(building: Path, rank: int) -> dict[str, str]:
    """Digests of a rank, once it has left them. A rank that ended without a word takes this one with it.

    Raises:
        OSError: it could not bring its files to the disk.
    """
    path = _digests_of(building, rank)
    while not path.exists():
        time.sleep(_POLL_S)
    told = path.read_bytes()
    path.unlink()
    if not told:
        raise OSError(f"rank {rank} could not bring its part of the checkpoint to the disk")
    digests: dict[str, str] = json.loads(told)
    return digests


def _finish(building: Path, checkpoint: Checkpoint) -> None:
    for path in (one for one in building.rglob("*") if one.is_dir()):
        sync_folder(path)
    write_whole(building / CHECKPOINT, on_disk.to_json(checkpoint))
    folder = building.rename(on_disk.folder_of(building.parent, checkpoint.step))
    sync_folder(folder.parent)
    write_whole(folder / COMPLETE, b"")


def _prune(root: Path, keep: int, best: int | None) -> None:
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
