"""What a host gives a process beside its devices: limits, disk, shared memory, tools, the network's way in."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from vitscale.hardware.interfaces import chosen
from vitscale.hardware.probe import Machine
from vitscale.records.examination import HostFacts, Limits

_SHM = Path("/dev/shm")
TOOLS = {
    "g++": "`engine.compile` on a CPU and DeepSpeed's own optimizers and offloading",
    "ninja": "DeepSpeed's own optimizers and offloading",
    "nvcc": "DeepSpeed's own optimizers on CUDA",
}
"""Tools that a run may need, and what for."""


def examine_host(
    node: int,
    device: str,
    backend: str,
    machine: Machine,
    versions: Mapping[str, str],
    results: Path,
    environ: Mapping[str, str],
) -> HostFacts:
    """Look at this host.

    Args:
        node: number of the host.
        device: `cpu` or `cuda`, the round's.
        backend: what its ranks talk through.
        machine: `probe()`.
        versions: of what decides speed and results.
        results: the results folder.
        environ: environment of a rank.
    """
    cpu = (machine.cpu_name or os.uname().machine,)
    return HostFacts(
        node=node,
        name=socket.gethostname(),
        versions=dict(versions),
        devices=tuple(gpu.name for gpu in machine.gpus) if device == "cuda" else cpu,
        devices_reason=machine.gpus_reason,
        cores=len(machine.cores),
        memory_bytes=machine.memory_bytes,
        interface=chosen(backend, environ),
        limits=_limits(environ),
        results_free_bytes=shutil.disk_usage(results).free,
        shm_free_bytes=shutil.disk_usage(_SHM).free if _SHM.is_dir() else None,
        missing_tools=tuple(name for name in TOOLS if shutil.which(name, path=environ.get("PATH")) is None),
        cache_writable=os.access(Path.home(), os.W_OK),
    )


def _limits(environ: Mapping[str, str]) -> Limits:
    ends = environ.get("SLURM_JOB_END_TIME", "")
    return Limits(
        open_files=_soft(resource.RLIMIT_NOFILE),
        processes=_soft(resource.RLIMIT_NPROC),
        processor_s=_soft(resource.RLIMIT_CPU),
        address_space_bytes=_soft(resource.RLIMIT_AS),
        file_bytes=_soft(resource.RLIMIT_FSIZE),
        locked_bytes=_soft(resource.RLIMIT_MEMLOCK),
        left_s=max(0.0, int(ends) - time.time()) if ends.isdigit() else None,
    )


def _soft(limit: int) -> int | None:
    soft, _ = resource.getrlimit(limit)
    return None if soft == resource.RLIM_INFINITY else soft
