"""What this machine is: cores and memory this process may use, and its GPUs. Asked for explicitly, never at import.

Nothing that identifies the machine or its owner is read into the result: no serial number, UUID, host name or address.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from vitscale.hardware import allocators

_ROOT = Path("/")
_BF16_FLAGS = {"avx512_bf16", "amx_bf16"}
"""Of x86, as the kernel names them."""


@dataclass(frozen=True)
class Gpu:
    """One visible GPU."""

    name: str
    """As NVML reports it; `catalog.match` finds its figures."""
    memory_bytes: int | None
    """None where only a scheduler tells of it."""


@dataclass(frozen=True)
class Machine:
    """What this process may use of the machine it runs on."""

    host_cores: int
    """Logical cores of the host, allowed or not."""
    cores: tuple[int, ...]
    """Cores allowed by the affinity mask, as many of them as the control group's quota pays for."""
    memory_bytes: int
    """Host memory, or the control group's limit if that is less."""
    cpu_name: str | None
    gpus: tuple[Gpu, ...]
    gpus_reason: str | None
    """Why `gpus` is empty, or None."""
    driver: str | None
    cpu_bf16: bool = False
    """Whether the CPU has instructions that multiply matrices of bf16."""
    tcmalloc: bool = False
    """Whether processes can be started with it."""


def probe(environ: Mapping[str, str] | None = None, root: Path = _ROOT) -> Machine:
    """Look at this machine.

    Args:
        environ: environment to read CUDA_VISIBLE_DEVICES from, `os.environ` if None.
        root: where /proc and /sys lie; tests give their own.
    """
    environ = os.environ if environ is None else environ
    gpus, driver, reason = _gpus(environ.get("CUDA_VISIBLE_DEVICES"))
    return Machine(
        host_cores=psutil.cpu_count(logical=True) or 1,
        cores=allowed_cores(sorted(os.sched_getaffinity(0)), root),
        memory_bytes=allowed_memory_bytes(psutil.virtual_memory().total, root),
        cpu_name=_cpuinfo(root, "model name"),
        gpus=gpus,
        gpus_reason=reason,
        driver=driver,
        cpu_bf16=bool(_BF16_FLAGS & set((_cpuinfo(root, "flags") or "").split())),
        tcmalloc=allocators.tcmalloc(environ, root) is not None,
    )


def matrix_flop_per_s(side: int = 768, seconds: float = 0.15) -> float:
    """Measure NumPy's fp32 matrix products on all cores this process may use: the best of a few, FLOP/s."""
    ones = np.ones((side, side), dtype=np.float32)
    np.dot(ones, ones)  # threads start here
    best_s, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        np.dot(ones, ones)
        best_s = min(best_s, time.perf_counter() - begin)
    return 2.0 * side**3 / best_s


def allowed_cores(affinity: list[int], root: Path = _ROOT) -> tuple[int, ...]:
    """Return the cores of an affinity mask that the CPU quota of the control groups pays for, at least one."""
    quotas = [len(affinity)]
    for folder in _control_groups(root, "cpu"):
        quota, period = _quota(folder)
        if quota is not None and period:
            quotas.append(max(1, quota // period))
    return tuple(affinity[: min(quotas)])


def _quota(folder: Path) -> tuple[int | None, int]:
    text = _read(folder / "cpu.max")
    if text is not None:
        limit, period = [*text.split(), "100000"][:2]
        return (None if limit == "max" else int(limit)), int(period)
    limit_us = _number(folder / "cpu.cfs_quota_us")
    return (limit_us if limit_us and limit_us > 0 else None), _number(folder / "cpu.cfs_period_us") or 0


def allowed_memory_bytes(host_bytes: int, root: Path = _ROOT) -> int:
    """Return the host's memory or the least limit of the control groups above this process."""
    limits = [host_bytes]
    for folder in _control_groups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _number(folder / name)
            if limit:
                limits.append(limit)
    return min(limits)


def _control_groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield this process's control group folders and those above, of version 2 and of one controller of version 1.

    Inside a container the path in /proc may not exist below the mount; the mount itself is then its group.
    """
    base = root / "sys/fs/cgroup"
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mount = base / controllers if controllers else base
        folder = mount / path.strip("/")
        while folder != mount and mount in folder.parents:
            yield folder
            folder = folder.parent
        yield mount


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = (_read(path) or "").strip()
    return int(text) if text.lstrip("-").isdigit() else None


def _cpuinfo(root: Path, field: str) -> str | None:
    for line in (_read(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == field:
            return value.strip()
    return None


def _gpus(visible: str | None) -> tuple[tuple[Gpu, ...], str | None, str | None]:
    """Return the visible GPUs, the driver's version, and the reason if there is none."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return (), None, f"NVML: {error}"
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        chosen = visible_indices(visible, [_text(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles])
        gpus = tuple(_gpu(pynvml, handles[index]) for index in chosen)
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError as error:
        return (), None, f"NVML: {error}"
    finally:
        pynvml.nvmlShutdown()
    if gpus:
        return gpus, driver, None
    return (), driver, "CUDA_VISIBLE_DEVICES hides every GPU" if handles else "NVML sees no GPU"


def _gpu(nvml: Any, handle: Any) -> Gpu:
    return Gpu(_text(nvml.nvmlDeviceGetName(handle)), int(nvml.nvmlDeviceGetMemoryInfo(handle).total))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def visible_indices(visible: str | None, uuids: list[str]) -> list[int]:
    """Return the devices that CUDA_VISIBLE_DEVICES lets a process see, in its order.

    As CUDA reads it: indices or the beginning of a UUID; the first entry that names no device ends the list. Unset
    means all.
    """
    if visible is None:
        return list(range(len(uuids)))
    chosen: list[int] = []
    for entry in (part.strip() for part in visible.split(",")):
        if entry.isdigit() and int(entry) < len(uuids):
            chosen.append(int(entry))
            continue
        found = [index for index, uuid in enumerate(uuids) if entry.startswith("GPU-") and uuid.startswith(entry)]
        if len(found) != 1:
            break
        chosen.append(found[0])
    return chosen
