"""`round.json`: what one process start has to do, and the heartbeat by which it says how far it is.

A round is one process start at one world size that serves one launch of each of several runs, in order.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from vitscale.config.knobs import Allocator
from vitscale.errors import ResultsError

ROUND = "round.json"
LISTENS = "listens.json"
ASKED = "asked"
"""Signals by name, one a line, that ranks of several hosts send themselves: for starters that do not pass them on."""
DETACHED = "VITSCALE_DETACHED"
"""Variable of ranks that go on without the tool. Others end where their standard input closes, held by its process."""


class Checkpointing(BaseModel):
    """How a training run keeps what it has learnt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    root: str
    """`checkpoints/`, relative to the results folder."""
    export: str
    """Where the trained model goes, relative to the results folder."""
    every: int
    """Optimizer steps between checkpoints."""
    keep: int
    """Newest checkpoints that are kept."""
    resume: str | None
    """Checkpoint to go on from, relative to the results folder; inspected by the parent."""
    restart: int = 0
    """How often the command has started the training again, after ranks that had ended; 0 is its first start."""


class Entry(BaseModel):
    """One launch of the round."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str
    """Launch folder, relative to the results folder."""
    run_id: str
    """The run."""
    launch: int
    """Number of the launch, from 0."""
    spec: dict[str, Any]
    """The RunSpec."""
    checkpoints: Checkpointing | None = None
    """Only `train` writes checkpoints."""
    parity: bool = False
    """Whether the engine is held against plain torch before the launch is timed."""


class Round(BaseModel):
    """One process start."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    schema_version: Literal[1] = 1
    """Version of this format."""
    name: str
    """Name of the round's folder."""
    world_size: int
    """Ranks in all."""
    nodes: int
    """Hosts."""
    ranks_per_node: int
    """Ranks on each host."""
    device: Literal["cpu", "cuda"]
    """Kind of device."""
    cores: tuple[tuple[int, ...], ...]
    """CPU cores of each rank of a machine; empty is not bound."""
    allocator: Allocator | None = None
    """Who gives ranks their memory; null is the C library."""
    link: str | None = None
    """What the launcher `lab` shapes the link of each host to, as `tc` writes it; null is not shaped."""
    one_machine: bool = False
    """Whether the hosts are namespaces of one machine, by the launcher `lab`."""
    examine: bool = False
    """Whether machines and links are looked at (`vitscale doctor`) in place of the launches being served."""
    entries: tuple[Entry, ...]
    """Launches, in order."""

    @property
    def sharing(self) -> int:
        """Ranks that share the cores and the memory of one machine."""
        return self.world_size if self.one_machine else self.ranks_per_node

    def cores_of(self, rank: int) -> tuple[int, ...]:
        """CPU cores of a rank; ranks are numbered machine by machine, and machines are alike."""
        return self.cores[rank % len(self.cores)] if self.cores else ()

    @classmethod
    def read(cls, path: Path) -> Round:
        """Read `round.json`.

        Raises:
            ResultsError: it is not there or not a round.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise ResultsError(f"cannot read round `{path}`: {error}") from None


class Beat(NamedTuple):
    """Where a rank is."""

    entry: int
    """Number of the launch in the round."""
    phase: str
    """`import`, `setup`, `warmup`, `steady`, `evaluate`, `checkpoint`, `done`."""
    step: int
    """Optimizer steps finished in this launch."""
    steps: int
    """Optimizer steps planned in this launch; 0 is not known yet."""
    loss: float | None
    """Last loss read back."""


_WIDTH = 96


class Heartbeat:
    """One fixed-width line per rank, overwritten in place: a write of 96 bytes per step, no flush, no sync.

    The ranks of a host write into one file, each its own line: a shared file system has one file for each host.
    """

    def __init__(self, folder: Path, rank: int, ranks_per_node: int) -> None:
        node, line = divmod(rank, ranks_per_node)
        self._rank, self._place = rank, line * _WIDTH
        self._file = os.open(heartbeat_path(folder, node), os.O_WRONLY | os.O_CREAT, 0o600)

    def beat(self, beat: Beat) -> None:
        """Say where this rank is."""
        loss = "-" if beat.loss is None else f"{beat.loss:.6g}"
        text = f"{self._rank} {beat.entry} {beat.phase} {beat.step} {beat.steps} {loss}"
        os.pwrite(self._file, text.ljust(_WIDTH - 1)[: _WIDTH - 1].encode() + b"\n", self._place)


def heartbeat_path(folder: Path, node: int) -> Path:
    """Where the heartbeats of a host's ranks lie in their round's folder."""
    return folder / f"heartbeat.node{node:03d}"


def read_heartbeats(folder: Path, nodes: int, world_size: int) -> list[Beat | None]:
    """Each rank's last heartbeat, None before its first; as many files are opened as there are hosts."""
    beats: list[Beat | None] = [None] * world_size
    for node in range(nodes):
        for rank, beat in _beats(heartbeat_path(folder, node)):
            if rank < world_size:
                beats[rank] = beat
    return beats


def _beats(path: Path) -> Iterator[tuple[int, Beat]]:
    try:
        text = path.read_bytes()
    except OSError:
        return
    for place in range(0, len(text), _WIDTH):
        with contextlib.suppress(ValueError):  # nothing is there yet, or half of it
            rank, entry, phase, step, steps, loss = text[place : place + _WIDTH].decode().split()
            beat = Beat(int(entry), phase, int(step), int(steps), None if loss == "-" else float(loss))
            yield int(rank), beat


def read_listens(folder: Path) -> list[list[str]] | None:
    """Where the ranks of each host listen, `eth0:41235`; None of one host, and before they have said so."""
    with contextlib.suppress(OSError, ValueError):
        hosts: list[list[str]] = json.loads((folder / LISTENS).read_bytes())["hosts"]
        return hosts
    return None


def asked_every_s(world_size: int) -> float:
    """How often each rank looks whether a signal is asked for: a file of a shared folder, a thousand looks a second."""
    return max(1.0, world_size / 1000)


def failure_path(folder: Path, rank: int) -> Path:
    """Where a rank says why it ended: `kind` (`oom`, `diverged`, `setup`, `exception`), `message` and `hint`."""
    return folder / f"failure.rank{rank:03d}.json"


class Failure(NamedTuple):
    """Why a rank ended."""

    rank: int
    kind: str
    message: str
    hint: str | None = None


def read_failures(folder: Path, world_size: int) -> list[Failure]:
    """What the ranks of a round left about their ends, by rank; a rank killed from outside leaves nothing."""
    found = []
    for rank in range(world_size):
        try:
            document = json.loads(failure_path(folder, rank).read_text())
            found.append(Failure(rank, str(document["kind"]), str(document["message"]), document.get("hint")))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found
