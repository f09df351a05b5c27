"""The ranks of a round: who this process is, how it meets the others, and the few things they agree on."""

from __future__ import annotations

import datetime
import json
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from vitscale.config.study import Backend
from vitscale.errors import SetupError


@dataclass(frozen=True)
class Ranks:
    """This process among the others, in torchrun's words."""

    rank: int
    local_rank: int
    world_size: int
    ranks_per_node: int
    device: torch.device

    @property
    def node(self) -> int:
        """Number of this host, from 0."""
        return self.rank // self.ranks_per_node

    @property
    def nodes(self) -> int:
        """Number of hosts."""
        return self.world_size // self.ranks_per_node


class Store(Protocol):
    """What ranks meet at, as torch's stores are: a value is waited for until somebody sets it."""

    def set(self, key: str, value: str) -> None:
        """Give a key its value."""

    def get(self, key: str) -> bytes:
        """The value of a key, once it has one."""

    def add(self, key: str, amount: int) -> int:
        """Add to the number at a key, from 0; the sum."""


def open_store(world_size: int) -> Store | None:
    """The file to meet at that `VITSCALE_STORE` names, or None."""
    path = os.environ.get("VITSCALE_STORE")
    if path is None:
        return None
    store = dist.FileStore(path, world_size)  # type: ignore[attr-defined]
    store.set_timeout(_PATIENCE)
    opened: Store = store
    return opened


_PATIENCE = datetime.timedelta(minutes=30)  # the parent's time limits are shorter and save the stacks first


def connect(kind: str, backend: Backend, store: Store | None = None) -> Ranks:
    """Join the process group that the environment describes, and see that all of its ranks are in it.

    Ranks meet at `store`, or at `open_store()` (one host: no listening socket at all); without it, at `MASTER_ADDR`
    and `MASTER_PORT` as torchrun sets them. MPI meets by itself, among the ranks that `mpirun` started.

    Raises:
        SetupError: this host has too few devices, or the group has not the ranks of the round.
    """
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local_rank, per_node = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    device = _own_device(kind, rank, local_rank)
    store = None if backend == "mpi" else store or open_store(world_size)
    dist.init_process_group(
        backend,
        store=store,  # type: ignore[arg-type]
        rank=rank if store else -1,
        world_size=world_size if store else -1,
        timeout=_PATIENCE,
        device_id=device if kind == "cuda" else None,
    )
    one = torch.ones(1, device=device)
    dist.all_reduce(one)
    if dist.get_world_size() != world_size or int(one) != world_size:
        seen = f"`backend = {backend}` sees {int(one)} of {world_size} ranks"
        raise SetupError(seen, "MPI's ranks are started by mpirun" if backend == "mpi" else "start the ranks anew")
    return Ranks(rank, local_rank, world_size, per_node, device)


def _own_device(kind: str, rank: int, local_rank: int) -> torch.device:
    """This rank's device: never another kind, never one that another rank has."""
    if kind != "cuda":
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if local_rank >= count:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        told = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible[:80]})"
        raise SetupError(
            f"rank {rank} needs GPU {local_rank} of its host, and torch sees {count} there{told}",
            "every process has to see all GPUs of its host: unset CUDA_VISIBLE_DEVICES, or start fewer ranks",
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def barrier() -> None:
    """Wait for all ranks."""
    dist.barrier()


def largest(value: float, device: torch.device) -> float:
    """The largest `value` of any rank."""
    tensor = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return float(tensor)


def start_maximum(values: Tensor) -> dist.Work:
    """Begin to replace `values` by their maximum over ranks, element by element; `wait()` before they are read."""
    work = dist.all_reduce(values, dist.ReduceOp.MAX, async_op=True)
    assert work is not None
    return work


def total(values: Tensor) -> Tensor:
    """Replace `values` by their sum over ranks, element by element."""
    dist.all_reduce(values)
    return values


def agreed_finite(tensors: Iterable[Tensor], device: torch.device) -> bool:
    """Whether every element on every rank is finite; of a sharded parameter (ZeRO-3, FSDP) its shard is looked at."""
    local = [shard for tensor in tensors if (shard := shard_of(tensor).detach()).numel()]
    norms = [norm.to(device) for norm in torch._foreach_norm(local, math.inf)]  # ZeRO-Offload's lie on two devices
    worst = torch.stack(norms) if norms else torch.zeros(1)
    return largest(float(not torch.isfinite(worst).all()), device) == 0


def shard_of(tensor: Tensor) -> Tensor:
    """This rank's part of a parameter, the whole of it where it is not sharded."""
    shard: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else getattr(tensor, "ds_tensor", tensor)
    return shard


def gathered(document: dict[str, Any], ranks: Ranks) -> list[dict[str, Any]]:
    """Every rank's JSON document, in rank order, on every rank. As bytes: nothing is ever unpickled."""
    data = json.dumps(document).encode()
    width = int(largest(len(data), ranks.device))
    own = torch.frombuffer(bytearray(data.ljust(width)), dtype=torch.uint8).to(ranks.device)
    rows = [torch.empty_like(own) for _ in range(ranks.world_size)]
    dist.all_gather(rows, own)
    return [json.loads(bytes(row.tolist())) for row in rows]


_ROUND_TRIPS = 32


class ClockOffset(NamedTuple):
    """A host's clock against the first host's, in nanoseconds."""

    ns: int
    """What has to be added to it."""
    error_ns: int
    """How far that may be off: half of the fastest round trip."""

    @property
    def seconds(self) -> tuple[float, float]:
        """Both, in seconds."""
        return self.ns / 1e9, self.error_ns / 1e9


Clock = Callable[[], int]
"""Nanoseconds."""


def clock_offsets(ranks: Ranks, clock: Clock = time.perf_counter_ns) -> list[ClockOffset]:
    """The clock of each host, on every rank. All ranks at once.

    The first rank of a host sends to rank 0 and has an answer with the time there; of `_ROUND_TRIPS` the fastest says
    most (Cristian 1989). Ranks of one host read the same clock.
    """
    table = torch.zeros(ranks.nodes, 2, dtype=torch.int64, device=ranks.device)
    for node in range(1, ranks.nodes):
        first = node * ranks.ranks_per_node
        if ranks.rank == 0:
            _answer(first, ranks.device, clock)
        elif ranks.rank == first:
            table[node] = torch.tensor(_ask(ranks.device, clock))
    dist.all_reduce(table)
    return [ClockOffset(*row) for row in table.tolist()]


def _answer(asker: int, device: torch.device, clock: Clock) -> None:
    message = torch.zeros(1, dtype=torch.int64, device=device)
    for _ in range(_ROUND_TRIPS):
        dist.recv(message, asker)
        message.fill_(clock())
        dist.send(message, asker)


def _ask(device: torch.device, clock: Clock) -> tuple[int, int]:
    message, found = torch.zeros(1, dtype=torch.int64, device=device), []
    for _ in range(_ROUND_TRIPS):
        began = clock()
        dist.send(message, 0)
        dist.recv(message, 0)
        there = int(message)
        ended = clock()
        found.append((ended - began, there - (began + ended) // 2))
    took, offset = min(found)
    return offset, took // 2
