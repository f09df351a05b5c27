"""What `vitscale doctor` finds: `doctor.json`, and in its round's folder what the hosts say of themselves.

A host's own facts are written before the ranks meet, so they are there where the ranks cannot talk.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import ValidationError

from vitscale.errors import ResultsError
from vitscale.records.links import LinkBenchmark
from vitscale.records.schema import SCHEMA_VERSION, Frozen, NotNegative, Positive

DOCTOR, EXAMINATION = "doctor.json", "examination.json"

CheckStatus = Literal["ok", "warning", "failed"]
_Document = TypeVar("_Document", bound=Frozen)


class Limits(Frozen):
    """What a process of this user may use; null is no limit."""

    open_files: int | None
    """Open files (`ulimit -n`)."""
    processes: int | None
    """Processes and threads of the user (`ulimit -u`)."""
    processor_s: int | None
    """Processor time of a process, seconds (`ulimit -t`)."""
    address_space_bytes: int | None
    """Address space of a process (`ulimit -v`)."""
    file_bytes: int | None
    """Size of a file (`ulimit -f`)."""
    locked_bytes: int | None
    """Memory that stays in place (`ulimit -l`), which InfiniBand needs."""
    left_s: NotNegative | None
    """Time until the scheduler ends the job (SLURM tells); null is not known."""


class Interface(Frozen):
    """The network interface by which a host's ranks are reached."""

    name: str
    """Its name, as `ip link` shows it."""
    why: str
    """What chose it."""
    loopback: bool
    """Whether it ends on the host itself."""
    network: str | None = None
    """What stands for the network that the ranks are in: hosts of one value are one machine, and reach each other."""


class HostFacts(Frozen):
    """`rounds/<k>-w<N>/host<n>.json`. One host, as the first of its ranks sees it before it talks to any other."""

    schema_version: int = SCHEMA_VERSION
    """Version of this format."""
    node: int
    """Number of the host, from 0."""
    name: str
    """What the host calls itself: in what `vitscale doctor` writes and in no other record."""
    versions: dict[str, str]
    """Versions of Python, the kernel, the driver and the packages that decide speed and results."""
    devices: tuple[str, ...]
    """GPUs that a process may use, by name; of a round on CPUs the CPU."""
    devices_reason: str | None
    """Why there is no GPU, else null."""
    cores: int
    """Cores that a process may use."""
    memory_bytes: int
    """Host memory, or the control group's limit."""
    interface: Interface
    """By which its ranks are reached."""
    limits: Limits
    results_free_bytes: int
    """Free disk of the results folder."""
    shm_free_bytes: int | None
    """Free memory of `/dev/shm`; null where there is none."""
    missing_tools: tuple[str, ...]
    """Of compilers and tools those that are not on `PATH`."""
    cache_writable: bool
    """Whether compiled kernels can be kept in the home folder."""


class Meeting(Frozen):
    """One host among the others."""

    node: int
    """Number of the host."""
    clock_offset_s: float
    """What has to be added to its wall clock to have host 0's, seconds."""
    clock_error_s: NotNegative
    """How far that may be off, seconds."""
    write_s: NotNegative
    """A file of a line written to the results folder and flushed to the disk, seconds."""
    seen_s: NotNegative | None
    """Until the files of all hosts were seen in the results folder, seconds; null where some was not."""
    unseen: tuple[int, ...]
    """Hosts whose file was not seen."""
    listens: tuple[str, ...]
    """Where its ranks listen: interface and port, `all` for every interface."""


class PairTiming(Frozen):
    """Two hosts, by one rank of each, or two ranks of a single host: what one sends the other, one way at a time."""

    a: int
    """Number of the one host or rank."""
    b: int
    """Number of the other, which is higher."""
    bytes: int
    """Of one transfer: as many as the largest of the model's collectives has, or what the time set aside allows."""
    there_s: tuple[Positive, ...]
    """Of each transfer from `a` to `b`, until `a` knows that it was received, seconds."""
    back_s: tuple[Positive, ...]
    """Of each from `b` to `a`."""
    bytes_per_s: Positive
    """Bytes over the median time of the slower way: of two ranks both the algorithm and the bus bandwidth."""


class Examination(Frozen):
    """`rounds/<k>-w<N>/examination.json`. The ranks together, by rank 0."""

    schema_version: int = SCHEMA_VERSION
    """Version of this format."""
    backend: str
    """`nccl`, `gloo` or `mpi`."""
    hosts: tuple[Meeting, ...]
    """By number."""
    between: Literal["hosts", "ranks"]
    """What `pairs` are of."""
    pairs: tuple[PairTiming, ...]
    """Every pair; pairs that have no member in common at the same time."""
    inside: tuple[PairTiming, ...] = ()
    """Of several hosts every pair of ranks within one, by their numbers among all; hosts at the same time."""
    links: LinkBenchmark | None
    """Collectives of all ranks of the model's own sizes; null with one rank."""


class Check(Frozen):
    """One thing that was looked at."""

    name: str
    """What was looked at."""
    status: CheckStatus
    """`ok`, `warning`, `failed`."""
    where: str
    """Hosts or pairs that it is about."""
    text: str
    """What was found."""
    hint: str | None = None
    """What to type or to change; null where nothing is to do."""


class DoctorReport(Frozen):
    """`doctor.json`. What `vitscale doctor` found."""

    schema_version: int = SCHEMA_VERSION
    """Version of this format."""
    study: str
    """Name of the study."""
    launcher: str
    """Who started the ranks."""
    round: str
    """Name of the process start's folder below `rounds/`."""
    world_size: int
    """Ranks in all: those of the study's largest world."""
    nodes: int
    """Hosts."""
    ranks_per_node: int
    """Ranks on each host."""
    device: Literal["cpu", "cuda"]
    """Kind of device."""
    model: str
    """Model whose collectives were timed."""
    healthy: bool
    """Whether no check failed."""
    checks: tuple[Check, ...]
    """In the order in which they were made."""
    hosts: tuple[HostFacts, ...]
    """Those that left word."""
    together: Examination | None
    """What the ranks found together; null where they did not get so far."""


def host_path(folder: Path, node: int) -> Path:
    """Where a host's facts lie in its round's folder."""
    return folder / f"host{node:03d}.json"


def read_hosts(folder: Path, nodes: int) -> tuple[HostFacts, ...]:
    """The facts of the hosts that left them in a round's folder.

    Raises:
        ResultsError: a file that is there is not what it should be.
    """
    paths = [path for node in range(nodes) if (path := host_path(folder, node)).exists()]
    return tuple(_read(HostFacts, path) for path in paths)


def read_examination(folder: Path) -> Examination | None:
    """What the ranks of a round found together, None where they did not get so far.

    Raises:
        ResultsError: the file is not what it should be.
    """
    path = folder / EXAMINATION
    return _read(Examination, path) if path.exists() else None


def _read(kind: type[_Document], path: Path) -> _Document:
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ResultsError(f"cannot read `{path}`: {error}") from None


_MAY_DIFFER = frozenset({"kernel", "driver"})
"""Of versions those that need not be equal on all hosts."""


def different_versions(hosts: Iterable[tuple[int, Mapping[str, str]]]) -> str | None:
    """Which packages are not the same on all hosts, `torch 2.14.1 on host 0, 2.13.0 on host 1`; None if all are."""
    told = list(hosts)
    names = sorted({name for _, versions in told for name in versions} - _MAY_DIFFER)
    found = []
    for name in names:
        by_version: dict[str, list[int]] = {}
        for node, versions in told:
            by_version.setdefault(versions.get(name, "not installed"), []).append(node)
        if len(by_version) > 1:
            found.append(f"{name} " + ", ".join(f"{one} on {hosts_named(nodes)}" for one, nodes in by_version.items()))
    return "; ".join(found) or None


def hosts_named(nodes: Iterable[int], kind: str = "host") -> str:
    """`host 1`, `hosts 0, 2`, and no more than eight of them."""
    numbers = list(nodes)
    listed = ", ".join(map(str, numbers[:8])) + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")
    return f"{kind}{'' if len(numbers) == 1 else 's'} {listed}"
