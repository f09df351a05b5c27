"""What a rank runs on, and how much of it was in use."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
from importlib import metadata
from pathlib import Path

import torch

from vitscale.hardware.probe import Machine, probe
from vitscale.records.schema import Device
from vitscale.worker import debug_flags
from vitscale.worker.distributed import Ranks

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # malloc.h
_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def keep_freed_memory() -> None:
    """Tell glibc to keep large blocks that are freed: a CPU step frees and asks for the same ones again and again.

    By default each goes back to the kernel and comes again page by page: 4 to 9 % of a ViT-Ti step (docs/log.md).
    All threads share one heap: `malloc_trim`, by which `return_memory` gives it back, leaves the ends of others alone.
    Elsewhere than glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_MAX, 0)  # M_MMAP_THRESHOLD has a limit before glibc 2.35: 32 MiB
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def reset_peak_memory(device: torch.device) -> bool:
    """Begin a new peak. False where the system cannot: then the peak is the process's, not the launch's."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def peak_memory_bytes(device: torch.device) -> int:
    """Highest memory in use since the reset: CUDA, allocated by torch; CPU, resident set of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    kibibytes = next(line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(kibibytes) * 1024


def return_memory(device: torch.device) -> None:
    """Give freed memory back: glibc keeps what a launch freed, and the next one's peak would begin with it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    for name in ("malloc_trim", "MallocExtension_ReleaseFreeMemory"):  # glibc's and tcmalloc's
        with contextlib.suppress(OSError, AttributeError):
            getattr(ctypes.CDLL(None), name)(0)


def describe(
    ranks: Ranks,
    machine: Machine,
    cores: tuple[int, ...],
    gemm_peak_flop_per_s: float | None,
    memory_peak_bytes: int | None = None,
) -> Device:
    """This rank's device; its peak memory, where it was not read before, is that since the reset."""
    cuda = ranks.device.type == "cuda"
    if cuda:
        properties = torch.cuda.get_device_properties(ranks.device)
        name, memory = properties.name, properties.total_memory
    else:
        name, memory = machine.cpu_name or platform.machine(), machine.memory_bytes
    return Device(
        rank=ranks.rank,
        node=ranks.node,
        local_rank=ranks.local_rank,
        kind="cuda" if cuda else "cpu",
        name=name,
        memory_bytes=memory,
        cores=cores,
        threads=torch.get_num_threads(),
        gemm_peak_flop_per_s=gemm_peak_flop_per_s,
        memory_peak_bytes=memory_peak_bytes or peak_memory_bytes(ranks.device),
        debug=debug_flags.found(os.environ, ranks.device),
    )


def memory_bytes(device: torch.device, sharing: int) -> int:
    """Memory that this rank may use: its GPU's, or its part of that of the machine, which so many ranks share."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return probe().memory_bytes // sharing


def timed_as(device: torch.device) -> str:
    """What a device is called where ranks are timed: a GPU by name, a CPU by name and the host's cores, which tells
    no host from another of its kind."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    machine = probe()
    return f"{machine.cpu_name or platform.machine()}, {machine.host_cores} cores"


def versions(machine: Machine) -> dict[str, str]:
    """Versions of what decides speed and results."""
    found = {"python": platform.python_version(), "kernel": os.uname().release}
    for package in ("vitscale", "torch", "torchvision", "timm", "deepspeed", "accelerate", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if torch.version.cuda and torch.cuda.is_available():
        found["cuda"] = torch.version.cuda
        found["nccl"] = ".".join(str(part) for part in torch.cuda.nccl.version())  # type: ignore[no-untyped-call]
    if machine.driver:
        found["driver"] = machine.driver
    return found
