"""What SLURM is asked, by its own commands: to take a job, how a job is, to end it, what its nodes are.

Commands are lists of words. Their exit status says whether SLURM answered; how a job ended is its state.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import psutil

from vitscale.errors import SetupError, UsageError
from vitscale.hardware.probe import Gpu, Machine
from vitscale.launch.hostfile import Host

_COMMANDS = ("sbatch", "srun", "squeue", "scancel", "sinfo")
_ANSWER_S = 60.0
"""Longest wait for a command."""
_OVER = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
}  # fmt: skip
_WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
_NEVER = {
    "AccountNotAllowed", "BadConstraints", "DependencyNeverSatisfied", "InvalidAccount", "InvalidQOS",
    "PartitionNodeLimit", "PartitionTimeLimit", "QOSNotAllowed",
}  # fmt: skip
"""Reasons to wait that no time takes away."""
FORGOTTEN = "FORGOTTEN"
_ITS_OUTPUT = ("SQUEUE_", "SINFO_", "SACCT_", "SCANCEL_")
"""Variables by which users change what the commands print."""


class State(NamedTuple):
    """How a job is."""

    name: str
    """SLURM's own word, `RUNNING`; `FORGOTTEN` where it does not know the job any more."""
    nodes: str = ""
    """Its nodes, as SLURM writes them: `n[1-4]`."""
    reason: str = ""
    """Why it waits: `Priority`."""

    @property
    def over(self) -> bool:
        """Whether it will not change any more."""
        return self.name in _OVER or self.name == FORGOTTEN

    @property
    def waiting(self) -> bool:
        """Whether the job has not begun."""
        return self.name in _WAITING

    @property
    def never(self) -> bool:
        """Whether it will wait for ever."""
        return self.waiting and self.reason in _NEVER


class Cluster(NamedTuple):
    """The nodes that jobs get."""

    machine: Machine
    """What each node has at least."""
    hosts: tuple[Host, ...]
    """One for each node; its slots are its GPUs, or its cores where there are none."""


def require_slurm() -> None:
    """Look for SLURM's commands.

    Raises:
        SetupError: they are not there.
    """
    if missing := [name for name in _COMMANDS if shutil.which(name) is None]:
        named = ", ".join(f"`{name}`" for name in missing)
        raise SetupError(f"the launcher `slurm` needs {named}, not found", "start it on a login node of the cluster")


class Scheduler:
    """SLURM. `environ` is the environment of its commands, but for `submit`'s."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = {name: value for name, value in environ.items() if not name.startswith(_ITS_OUTPUT)}

    def submit(self, script: str, results: Path, environ: Mapping[str, str], word: str) -> str:
        """Hand over a script that lies in a results folder, and works there; the job's number.

        `word` is the job's comment, by which `found` knows it.

        Raises:
            SetupError: SLURM refuses it, with its message.
        """
        done = _call(["sbatch", "--parsable", f"--comment={word}", script], environ, results)
        match = re.fullmatch(r"(\d+)(;\S+)?", done.stdout.strip())
        if done.returncode != 0 or match is None:
            raise SetupError(
                f"`sbatch` refused a job: {_said(done)}", "launch.partition, launch.account, launch.qos and so on"
            )
        return match[1]

    def found(self, word: str) -> list[str]:
        """The job of this comment, or the elements of an array; none where SLURM has none, or none any more.

        Raises:
            SetupError: SLURM does not answer.
        """
        done = _call(["squeue", "--noheader", "--me", "--array", "--states=all", "--format=%i|%k"], self._environ)
        if done.returncode != 0:
            raise SetupError(f"`squeue`: {_said(done)}", "is this a login node, and is slurmctld there?")
        lines = [line.strip().partition("|") for line in done.stdout.splitlines()]
        jobs = [job for job, _, comment in lines if comment == word]
        return sorted(jobs, key=lambda job: int(job.partition("_")[2] or 0))

    def state(self, job: str) -> State | None:
        """How a job is, or None where SLURM does not answer."""
        done = _call(["squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T|%N|%r"], self._environ)
        if done.returncode == 0 and "|" in done.stdout:
            return State(*done.stdout.strip().splitlines()[0].split("|", 2))
        if done.returncode == 0 or "Invalid job id" in done.stderr:
            return self._accounted(job)
        return None

    def _accounted(self, job: str) -> State:
        """How a job is that has left the queue: many clusters keep accounts, and some do not."""
        if shutil.which("sacct") is None:
            return State(FORGOTTEN)
        words = ["--noheader", "--parsable2", "--allocations", f"--jobs={job}", "--format=State,NodeList"]
        done = _call(["sacct", *words], self._environ)
        match = re.match(r"([A-Z_]+)[^|\n]*\|([^|\n]*)", done.stdout)
        return State(match[1], match[2]) if done.returncode == 0 and match else State(FORGOTTEN)

    def step(self, job: str, name: str) -> str | None:
        """Number of a job's step by its name, `17.3`."""
        done = _call(["squeue", "--noheader", "--steps", f"--jobs={job}", "--format=%i|%j"], self._environ)
        found = [line.split("|", 1) for line in done.stdout.split() if "|" in line]
        return next((number for number, known in found if known == name), None)

    def signal(self, job: str, number: signal.Signals) -> None:
        """Send a signal to the ranks of a job, or of a step."""
        _call(["scancel", "--quiet", f"--signal={number.name.removeprefix('SIG')}", job], self._environ)

    def cancel(self, job: str) -> None:
        """End a job."""
        _call(["scancel", "--quiet", job], self._environ)

    def cluster(self, partition: str | None, nodes: str | None = None) -> Cluster:
        """The nodes of a partition, of the default one if None, or only some of them.

        Raises:
            SetupError: SLURM does not answer.
            UsageError: no such partition, or no default one.
        """
        words = ["--noheader", "--exact", "--format=%P|%D|%c|%m|%G", *([f"--nodes={nodes}"] if nodes else [])]
        done = _call(["sinfo", *words], self._environ)
        if done.returncode != 0:
            raise SetupError(f"`sinfo`: {_said(done)}", "is this a login node, and is slurmctld there?")
        kinds = [kind for line in done.stdout.splitlines() if (kind := _kind(line))]
        wanted = partition.split(",") if partition else [kind.partition for kind in kinds if kind.default]
        taken = [kind for kind in kinds if kind.partition in wanted]
        if not taken:
            there = ", ".join(dict.fromkeys(kind.partition for kind in kinds))
            missing = f"no partition `{partition}`" if partition else "no default partition"
            raise UsageError(f"SLURM has {missing}", f"launch.partition is one of {there}")
        return _cluster(taken)


class _Kind(NamedTuple):
    """Nodes of a partition that are alike."""

    partition: str
    default: bool
    nodes: int
    cores: int
    memory_bytes: int
    gpus: int
    gpu: str


def _kind(line: str) -> _Kind | None:
    fields = line.strip().split("|")
    if len(fields) != 5 or not all(field.isdecimal() for field in fields[1:4]):
        return None
    name, (nodes, cores, megabytes) = fields[0], map(int, fields[1:4])
    gpus = [(kind or "GPU", int(count)) for kind, count in _GPUS.findall(fields[4])]
    # Where the memory of nodes is not configured, SLURM says 1 MB.
    memory = megabytes << 20 if megabytes > 1 else psutil.virtual_memory().total
    total = sum(count for _, count in gpus)
    return _Kind(name.removesuffix("*"), name.endswith("*"), nodes, cores, memory, total, gpus[0][0] if gpus else "")


_GPUS = re.compile(r"(?:^|,)gpu:(?:([^:,(]+):)?(\d+)")


def _cluster(kinds: list[_Kind]) -> Cluster:
    cores, gpus = min(kind.cores for kind in kinds), min(kind.gpus for kind in kinds)
    machine = Machine(
        host_cores=cores,
        cores=tuple(range(cores)),
        memory_bytes=min(kind.memory_bytes for kind in kinds),
        cpu_name=None,
        gpus=(Gpu(kinds[0].gpu, None),) * gpus,
        gpus_reason=None if gpus else "SLURM knows of no GPU in these nodes",
        driver=None,
    )
    hosts = [Host(kind.partition, kind.gpus or kind.cores) for kind in kinds for _ in range(kind.nodes)]
    return Cluster(machine, tuple(hosts))


def _call(words: list[str], environ: Mapping[str, str], folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command; one that does not answer has failed. Ctrl-C in the terminal does not reach it."""
    try:
        return subprocess.run(
            words,
            cwd=folder,
            env=environ,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_ANSWER_S,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(words, 1, "", str(error))


def _said(done: subprocess.CompletedProcess[str]) -> str:
    """A command's own message in one line."""
    lines = [re.sub(r"^\w+: error: ", "", line.strip()) for line in done.stderr.splitlines() if line.strip()]
    return "; ".join(lines)[:300] or f"status {done.returncode}"
