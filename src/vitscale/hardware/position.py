"""Which of the ranks a process is, as the program that started it tells in the environment.

Sources: torch.distributed.run (torch 2.14), DeepSpeed's launcher/launch.py (0.19), Open MPI's manual "Environment
variables set for MPI applications", MPICH's hydra (4.0), srun(1) of SLURM 22.05. All were recorded from real ones: the
tests have them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from vitscale.errors import SetupError


class Position(NamedTuple):
    """One rank among all; ranks are numbered host by host, as many on each."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    starter: str
    """Whose variables told it."""

    @property
    def node(self) -> int:
        """Number of this host, from 0."""
        return self.rank // self.local_world_size

    def variables(self) -> dict[str, str]:
        """The same in torchrun's names, which torch, DeepSpeed and Accelerate read."""
        return {
            "RANK": str(self.rank),
            "LOCAL_RANK": str(self.local_rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_WORLD_SIZE": str(self.local_world_size),
        }


class Starter(NamedTuple):
    """The variables of one kind of starter; of several names the first that is there counts."""

    title: str
    rank: str
    world_size: tuple[str, ...]
    local_rank: str
    local_world_size: tuple[str, ...]
    node: tuple[str, ...] = ()


OPEN_MPI, MPICH, SLURM = "Open MPI's mpirun", "MPICH's mpirun", "SLURM's srun"
STARTERS = (
    Starter(
        "torchrun",  # and whoever uses its names: DeepSpeed, Accelerate, Kubeflow's TrainJob
        rank="RANK",
        world_size=("WORLD_SIZE",),
        local_rank="LOCAL_RANK",
        local_world_size=("LOCAL_WORLD_SIZE", "LOCAL_SIZE"),
        node=("GROUP_RANK", "CROSS_RANK"),
    ),
    Starter(
        OPEN_MPI,
        rank="OMPI_COMM_WORLD_RANK",
        world_size=("OMPI_COMM_WORLD_SIZE",),
        local_rank="OMPI_COMM_WORLD_LOCAL_RANK",
        local_world_size=("OMPI_COMM_WORLD_LOCAL_SIZE",),
    ),
    Starter(
        MPICH,
        rank="PMI_RANK",
        world_size=("PMI_SIZE",),
        local_rank="MPI_LOCALRANKID",
        local_world_size=("MPI_LOCALNRANKS",),
    ),
    Starter(
        SLURM,
        rank="SLURM_PROCID",
        world_size=("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
        local_rank="SLURM_LOCALID",
        local_world_size=("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"),
        node=("SLURM_NODEID",),
    ),
)
"""The nearest to the process first: mpirun and torchrun are themselves started by srun, and not the other way round."""

_NESTED = "TORCHELASTIC_RUN_ID"  # torchrun is here: variables of others are those that it was started with
_IN_TURN = "mpirun --map-by slot, or srun --distribution=block"


def position(environ: Mapping[str, str]) -> Position:
    """Find out which rank this process is.

    Raises:
        SetupError: nobody told, not all, or two starters contradict one another.
    """
    told = [starter for starter in STARTERS if starter.rank in environ]
    whole = [starter for starter in told if not list(_missing(starter, environ))]
    if not whole:
        raise _untold(told, environ)
    found = _read(whole[0], environ)
    if _NESTED not in environ:
        _require_agreement(found, told, environ)
    return found


def _missing(starter: Starter, environ: Mapping[str, str]) -> Iterator[str]:
    wanted = ((starter.rank,), starter.world_size, (starter.local_rank,), starter.local_world_size)
    return (names[0] for names in wanted if not any(name in environ for name in names))


def _untold(told: list[Starter], environ: Mapping[str, str]) -> SetupError:
    if not told:
        ranks = ", ".join(f"`{starter.rank}`" for starter in STARTERS)
        return SetupError(f"no starter told this process its rank: none of {ranks} is set", "torchrun, mpirun or srun")
    missing = " and ".join(f"`{name}`" for name in _missing(told[0], environ))
    return SetupError(f"`{told[0].rank}` is set, {missing} not", f"{told[0].title} sets all of them")


def _read(starter: Starter, environ: Mapping[str, str]) -> Position:
    def number(*names: str) -> int:
        return _number(environ, *names)

    rank, world_size = number(starter.rank), number(*starter.world_size)
    local_rank, per_node = number(starter.local_rank), _per_node(environ, starter.local_world_size)
    if per_node < 1 or rank >= world_size or local_rank >= per_node:
        text = f"rank {rank} of {world_size}, {local_rank} of {per_node} on its host"
        raise SetupError(f"{starter.title} contradicts itself: this is {text}", "start the ranks anew")
    if world_size % per_node:
        raise SetupError(f"{world_size} ranks, {per_node} of them on this host: hosts differ", "as many on each host")
    found = Position(rank, local_rank, world_size, per_node, starter.title)
    node = number(*starter.node) if any(name in environ for name in starter.node) else found.node
    if (node, local_rank) != (found.node, rank % per_node):
        raise SetupError(
            f"rank {rank} is number {local_rank} on host {node}, with {per_node} on each: not numbered host by host",
            _IN_TURN,
        )
    return found


def _number(environ: Mapping[str, str], *names: str) -> int:
    name = next(name for name in names if name in environ)
    if not re.fullmatch(r"[0-9]{1,9}", environ[name]):
        raise SetupError(f"`{name}` = {environ[name][:40]!r} is not a number of ranks", "start the ranks anew")
    return int(environ[name])


def _per_node(environ: Mapping[str, str], names: tuple[str, ...]) -> int:
    """Ranks on this host. SLURM tells those of all hosts: `2(x3)` is 2 on each of 3, `2(x3),1` is not even."""
    name = next(name for name in names if name in environ)
    match = re.fullmatch(r"([0-9]{1,9})(\(x[0-9]{1,9}\))?", environ[name])
    if match is None:
        raise SetupError(f"`{name}` = {environ[name][:40]!r}: hosts differ", "as many ranks on each host")
    return int(match[1])


def _require_agreement(found: Position, told: list[Starter], environ: Mapping[str, str]) -> None:
    """Refuse variables that are left over from another start: the ranks would be a world of their own each.

    SLURM's are no contradiction: a batch script, and the daemons of mpirun, are tasks of their own to it.
    """
    for starter in told:
        if starter.title in (found.starter, SLURM) or not any(name in environ for name in starter.world_size):
            continue
        other = _number(environ, starter.rank), _number(environ, *starter.world_size)
        if other not in ((found.rank, found.world_size), (0, 1)):
            raise SetupError(
                f"`{_names(found.starter).rank}` says rank {found.rank} of {found.world_size}, "
                f"`{starter.rank}` rank {other[0]} of {other[1]}",
                f"unset {_names(found.starter).rank} {' '.join(_names(found.starter).world_size)}",
            )


def _names(title: str) -> Starter:
    return next(starter for starter in STARTERS if starter.title == title)
