"""What `vitscale doctor` makes of each host: versions, devices, limits, disks. Facts in, checks out.

A check that finds nothing wrong is one line for all hosts; what is wrong is a line for each host, with what to type.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from vitscale.config import offload
from vitscale.config.runspec import RunSpec
from vitscale.hardware.host import TOOLS
from vitscale.launch.outcome import RoundEnd
from vitscale.records.examination import (
    Check,
    CheckStatus,
    Examination,
    HostFacts,
    different_versions,
    hosts_named,
)
from vitscale.units import seconds, size

ALL = "all hosts"

_NCCL_SEGMENT_BYTES = 33_030_528
"""Of shared memory for each rank: what NCCL's "Error while creating shared memory segment" asks for (NCCL 2.x)."""
_DISK_BYTES, _LITTLE_DISK_BYTES = 1 << 30, 100 << 20
_FILES_OF_RANK, _FILES_PER_PEER = 256, 4
"""Open files of a rank beside its sockets, and sockets for each other rank; gloo holds two."""
_THREADS_OF_RANK = 64
"""Threads of a rank beside those that compute: of torch, gloo, NCCL and DeepSpeed."""
_SHORT_S = 600.0


class Case(NamedTuple):
    """What is judged."""

    runs: Sequence[RunSpec]
    """Of one process start."""
    hosts: tuple[HostFacts, ...]
    """Those that left word."""
    together: Examination | None
    """What the ranks found together."""
    end: RoundEnd
    """How the round ended."""

    @property
    def run(self) -> RunSpec:
        """Any of the runs: their world is the same."""
        return self.runs[0]

    def where(self, host: HostFacts) -> str:
        """A host by number and name."""
        return f"host {host.node} ({host.name})"


def of_hosts(case: Case) -> Iterator[Check]:
    """Every check of the hosts themselves, in the order in which they stand in the way of the next."""
    yield from _heard(case)
    if case.hosts:
        for check in (_versions, _drivers, _devices, _disk, _shm, _limits, _time, _tools):
            yield from check(case)


def _heard(case: Case) -> Iterator[Check]:
    missing = sorted({*range(case.run.nodes)} - {host.node for host in case.hosts})
    if not missing:
        yield Check(name="hosts", status="ok", where=ALL, text=f"{hosts_named(range(case.run.nodes))} left word")
        return
    yield Check(
        name="hosts",
        status="failed",
        where=hosts_named(missing),
        text="left no word in the results folder: not started, or the folder is not shared",
        hint="the results folder and the Python environment have one path on all hosts; on each: `ls` both",
    )


def _versions(case: Case) -> Iterator[Check]:
    found = different_versions((host.node, host.versions) for host in case.hosts)
    if found:
        hint = "one environment for all hosts, or `pip install` the same versions in each"
        yield Check(name="versions", status="failed", where=ALL, text=found, hint=hint)
        return
    told = case.hosts[0].versions
    shown = ("vitscale", "python", "torch", "deepspeed", "timm", "numpy")
    text = ", ".join(f"{name} {told[name]}" for name in shown if name in told)
    yield Check(name="versions", status="ok", where=ALL, text=text)


def _drivers(case: Case) -> Iterator[Check]:
    for name in ("kernel", "driver"):
        told = {host.node: host.versions.get(name, "none") for host in case.hosts}
        if len(set(told.values())) > 1:
            text = ", ".join(f"{version} on host {node}" for node, version in list(told.items())[:8])
            hint = f"the same {name} everywhere, where speed differs"
            yield Check(name=name, status="warning", where=ALL, text=text, hint=hint)


def _devices(case: Case) -> Iterator[Check]:
    run, problems = case.run, case.run.oversubscribed
    crowd = "a smaller world_size: such a run is measured, and not valid"
    if run.oversubscribed:
        text = f"{run.world_size} ranks and fewer cores, which they share"
        yield Check(name="devices", status="warning", where=ALL, text=text, hint=crowd)
    for host in case.hosts:
        if run.device == "cuda" and len(host.devices) < run.ranks_per_node:
            problems = True
            text = f"sees {len(host.devices)} of the {run.ranks_per_node} GPUs that its ranks need"
            text += f": {host.devices_reason}" if host.devices_reason else ""
            hint = "nvidia-smi on that host; unset CUDA_VISIBLE_DEVICES; or a smaller ranks_per_node"
            yield Check(name="devices", status="failed", where=case.where(host), text=text, hint=hint)
        elif not run.oversubscribed and (run.threads_per_rank or 0) * run.ranks_per_node > host.cores:
            problems = True
            text = f"{(run.threads_per_rank or 0) * run.ranks_per_node} threads of its ranks on {host.cores} cores"
            yield Check(name="devices", status="warning", where=case.where(host), text=text, hint=crowd)
    if len({host.devices for host in case.hosts}) > 1:
        problems = True
        yield _unlike(case)
    if not problems:
        first = case.hosts[0]
        text = f"{_counted(first.devices)} each" if run.device == "cuda" else f"{first.devices[0]}, {first.cores} cores"
        yield Check(name="devices", status="ok", where=ALL, text=text)


def _unlike(case: Case) -> Check:
    text = "; ".join(f"host {host.node}: {_counted(host.devices)}" for host in case.hosts[:8])
    if all(run.knobs and run.knobs.split for run in case.runs):
        return Check(name="devices", status="ok", where=ALL, text=f"{text}; shares of images by engine.split")
    hint = "the slowest device sets the pace: engine.split=proportional deals images by speed; or leave its host out"
    return Check(name="devices", status="warning", where=ALL, text=text, hint=hint)


def _counted(devices: tuple[str, ...]) -> str:
    return ", ".join(f"{devices.count(name)} x {name}" for name in dict.fromkeys(devices)) or "none"


def _disk(case: Case) -> Iterator[Check]:
    host = min(case.hosts, key=lambda one: one.results_free_bytes)
    free = host.results_free_bytes
    status: CheckStatus = "failed" if free < _LITTLE_DISK_BYTES else "warning" if free < _DISK_BYTES else "ok"
    where = ALL if status == "ok" else case.where(host)
    hint = None if status == "ok" else "`--out` on another disk, or make room; `df -h` shows it"
    yield Check(name="disk", status=status, where=where, text=f"{size(free)} free for results", hint=hint)


def _shm(case: Case) -> Iterator[Check]:
    run = case.run
    if run.device == "cpu" or run.ranks_per_node == 1:
        yield Check(name="/dev/shm", status="ok", where=ALL, text="not needed: no two GPUs of a host talk")
        return
    need = _NCCL_SEGMENT_BYTES * run.ranks_per_node
    short = [host for host in case.hosts if host.shm_free_bytes is None or host.shm_free_bytes < need]
    for host in short:
        text = f"{size(host.shm_free_bytes)} free, NCCL takes up to {size(need)}"
        hint = "docker run --shm-size=1g, or mount -o remount,size=1G /dev/shm"
        yield Check(name="/dev/shm", status="failed", where=case.where(host), text=text, hint=hint)
    if not short:
        least = min(host.shm_free_bytes or 0 for host in case.hosts)
        yield Check(name="/dev/shm", status="ok", where=ALL, text=f"{size(least)} free, {size(need)} needed at most")


def _limits(case: Case) -> Iterator[Check]:
    run, found = case.run, False
    files = _FILES_OF_RANK + _FILES_PER_PEER * run.world_size
    threads = run.ranks_per_node * (_THREADS_OF_RANK + (run.threads_per_rank or 1))
    for host in case.hosts:
        limits, infiniband = host.limits, "InfiniBand" in host.interface.why
        wanted: tuple[tuple[str, int | None, int | None, CheckStatus], ...] = (
            ("ulimit -n (open files)", limits.open_files, files, "failed"),
            ("ulimit -u (processes and threads)", limits.processes, threads, "failed"),
            ("ulimit -t (processor time, s)", limits.processor_s, None, "warning"),
            ("ulimit -v (address space, bytes)", limits.address_space_bytes, None, "warning"),
            ("ulimit -f (size of a file, bytes)", limits.file_bytes, None, "warning"),
            ("ulimit -l (locked memory, bytes)", limits.locked_bytes if infiniband else None, None, "failed"),
        )
        for title, limit, need, status in wanted:
            if limit is not None and (need is None or limit < need):
                found = True
                text = f"{title} is {limit:,}" + ("" if need is None else f", {need:,} are needed")
                hint = f"{' '.join(title.split()[:2])} {need or 'unlimited'}, or limits.conf of that host"
                yield Check(name="limits", status=status, where=case.where(host), text=text, hint=hint)
    if not found:
        yield Check(name="limits", status="ok", where=ALL, text="open files, threads, memory and time suffice")


def _time(case: Case) -> Iterator[Check]:
    left = [host.limits.left_s for host in case.hosts if host.limits.left_s is not None]
    if left:
        short = min(left) < _SHORT_S
        hint = "a longer --time; the same command goes on in the next job" if short else None
        text = f"{seconds(min(left))} left of the scheduler's job"
        yield Check(name="time", status="warning" if short else "ok", where=ALL, text=text, hint=hint)


def _tools(case: Case) -> Iterator[Check]:
    needed, found = set(_needed(case.runs)), False
    for host in case.hosts:
        if missing := sorted(needed & {*host.missing_tools}):
            found = True
            text = f"not found: {', '.join(missing)}, for {TOOLS[missing[0]]}"
            hint = f"apt-get install {' '.join(missing)}, or module load of a compiler"
            yield Check(name="tools", status="failed", where=case.where(host), text=text, hint=hint)
        if needed and not host.cache_writable:
            found = True
            hint = "TRITON_CACHE_DIR and TORCH_EXTENSIONS_DIR name folders that can be written"
            text = "compiled kernels cannot be kept in the home folder"
            yield Check(name="tools", status="warning", where=case.where(host), text=text, hint=hint)
    if not found:
        absent = sorted({name for host in case.hosts for name in host.missing_tools} - needed)
        text = "nothing is compiled" if not needed else f"{', '.join(sorted(needed))} found"
        text += f"; without {', '.join(absent)}, which this study does not need" if absent else ""
        yield Check(name="tools", status="ok", where=ALL, text=text)


def _needed(runs: Sequence[RunSpec]) -> Iterator[str]:
    """Tools that the runs need."""
    for run in runs:
        knobs, asked = run.knobs, offload.asked(run.deepspeed)
        if knobs and knobs.compile and run.device == "cpu":
            yield "g++"
        if asked.optimizer or asked.parameters or (knobs and knobs.optimizer_impl == "deepspeed"):
            yield from ("g++", "ninja", "nvcc") if run.device == "cuda" else ("g++", "ninja")
