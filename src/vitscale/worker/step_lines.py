"""Where a rank's step lines go: into a file of its own on one node, into its node's file on several.

On several nodes the results folder is on a shared file system, which thousands of files would slow. There each rank
writes to its node's own disk, and the node's first rank appends what is there to the node's file. The files in between
lose their names as soon as all are open: whoever is killed leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from vitscale.errors import ResultsError
from vitscale.records.schema import StepRecord
from vitscale.records.writer import StepWriter, steps_name
from vitscale.worker.distributed import Ranks, barrier, gathered, largest


class StepLines(Protocol):
    """What a launch asks of its writer; each may raise `ResultsError`."""

    def write(self, records: Iterable[StepRecord]) -> None:
        """Append lines."""

    def sync(self) -> None:
        """Bring what was written to the disk; on several nodes what this node's ranks have written so far."""

    def close(self) -> None:
        """Bring all of it to the disk. All ranks at once."""


def open_step_lines(folder: Path, ranks: Ranks) -> StepLines:
    """The writer of this rank. All ranks at once.

    Where ranks of a node do not see the same temporary folder (a container each), every rank has a file of its own.
    """
    if ranks.nodes == 1:
        return StepWriter(folder, ranks.rank)
    if ranks.ranks_per_node == 1:
        return StepWriter(folder, node=ranks.node)
    first = ranks.node * ranks.ranks_per_node
    own = tempfile.mkdtemp(prefix="vitscale-") if ranks.rank == first else ""
    between = Path(gathered({"folder": own}, ranks)[first]["folder"])
    spool: StepWriter | None = None
    parts: tuple[BinaryIO, ...] = ()
    with contextlib.suppress(OSError):
        spool = StepWriter(between, ranks.rank)
    alone = largest(float(spool is None), ranks.device) > 0
    if own:
        here = () if alone else range(first, first + ranks.ranks_per_node)
        parts = tuple((between / steps_name(rank)).open("rb") for rank in here)
        shutil.rmtree(between, ignore_errors=True)  # NFS keeps what others have open, and its folder
    if spool is not None and alone:
        spool.close()
    if spool is None or alone:
        return StepWriter(folder, ranks.rank)
    return _OfNode(spool, StepWriter(folder, node=ranks.node) if own else None, parts)


class _OfNode:
    """Lines of one rank among its node's; `node` and `parts`, all its ranks' lines, are the first rank's."""

    def __init__(self, spool: StepWriter, node: StepWriter | None, parts: Sequence[BinaryIO]) -> None:
        self._spool, self._node, self._parts = spool, node, parts

    def write(self, records: Iterable[StepRecord]) -> None:
        self._spool.write(records)

    def sync(self) -> None:
        if self._node is not None:
            for part in self._parts:
                self._node.append(_new_lines(part))
            self._node.sync()

    def close(self) -> None:
        barrier()  # all have written
        self.sync()
        self._spool.close()
        if self._node is not None:
            self._node.close()
        for part in self._parts:
            part.close()


def _new_lines(part: BinaryIO) -> bytes:
    """Whole lines that are new since the last call.

    Raises:
        ResultsError: they cannot be read.
    """
    try:
        data = part.read()
        whole = data.rfind(b"\n") + 1
        part.seek(whole - len(data), os.SEEK_CUR)
    except OSError as error:
        raise ResultsError(f"cannot read step lines of this node: {error.strerror}") from None
    return data[:whole]
