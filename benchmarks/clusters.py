"""What each launcher needs to start ranks on this machine, while a benchmark lasts: what `tests/cluster` starts.

Longest is SLURM's: a controller and two nodes of one core each.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.figure import ROOT
from vitscale.launch.lab import require_namespaces
from vitscale.launch.mpi import find_mpirun

LAUNCHERS = ("local", "mpi", "lab", "hosts", "slurm")


@dataclass(frozen=True)
class Place:
    """Where a launcher works, and how `vitscale` is started there."""

    launcher: str
    settings: tuple[str, ...] = ()
    prefix: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict)
    """Beside this process's."""


@contextlib.contextmanager
def place(launcher: str, folder: Path) -> Iterator[Place]:
    """What a launcher needs, started in a folder.

    Raises:
        SetupError: this machine lacks something.
    """
    with contextlib.ExitStack() as stack:
        if launcher == "mpi":
            find_mpirun()
        if launcher == "lab":
            require_namespaces()
        if launcher == "hosts":
            require_namespaces()
            hosts = stack.enter_context(_tests("ssh_cluster").ssh_hosts(folder / "ssh"))
            yield Place(launcher, (f"launch.hostfile={hosts.hostfile}",), hosts.prefix, hosts.environ)
        elif launcher == "slurm":
            slurm = stack.enter_context(_tests("slurm_cluster").cluster())
            yield Place(launcher, environ=slurm.environ)
        else:
            yield Place(launcher)


def _tests(module: str):  # type: ignore[no-untyped-def]  # as tests are
    folder = str(ROOT / "tests" / "cluster")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(module)
