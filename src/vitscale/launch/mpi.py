"""Ranks started by `mpirun`, Open MPI's or MPICH's: on this machine, or on the hosts of `launch.hostfile`.

mpirun starts and ends the ranks, and nothing more: they meet at a file in the results folder, which all hosts share,
and talk through the study's backend. Whether a launch succeeded is read from its records, never from a status alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import psutil

from vitscale.errors import SetupError
from vitscale.hardware.oom_kills import COUNTS, counted
from vitscale.launch.attend import attend
from vitscale.launch.hostfile import Host, chosen
from vitscale.launch.inputs import OF_ONE_HOST, Inputs, allowed
from vitscale.launch.local import LOOPBACK, of_the_round, worker
from vitscale.launch.outcome import Killed, RoundEnd, Watch
from vitscale.launch.processes import Command, Ranks, end_leftovers
from vitscale.records.round import ASKED, Round, asked_every_s, read_failures

_HERE = "localhost"
_INSTALL = "apt-get install openmpi-bin (Debian), or module load openmpi"
_STOP_S = 5.0
"""Longest wait for mpirun to end the ranks and itself."""

_LAST_WORDS_S = 5.0
"""How long mpirun may go on after a rank has said why it ended: it may wait for a host that is gone."""
_STACKS_S = 1.0
_ASKED_S = 20.0
"""Longest wait for what a host's kernel has counted."""

_OF_MPIRUN = ("OPAL_PREFIX", "OMPI_MCA_", "PMIX_MCA_", "PRTE_MCA_", "HYDRA_", "SLURM_", "PBS_", "LSB_")
"""What mpirun itself reads: settings, and what a scheduler gave the job."""
_NOTICE = {f"OMPI_MCA_oob_tcp_keepalive_{name}": "3" for name in ("time", "intvl", "probes")}
"""Open MPI's mpirun and its daemons notice after 12 s, rather than many minutes, that no network joins them."""


class Mpirun(NamedTuple):
    """The `mpirun` of this machine."""

    path: str
    kind: Literal["openmpi", "hydra"]


def find_mpirun() -> Mpirun:
    """Look for `mpirun`, and ask it whose it is.

    Raises:
        SetupError: there is none, or one of another MPI.
    """
    path = shutil.which("mpirun")
    if path is None:
        raise SetupError("the launcher `mpi` needs `mpirun`, not found", _INSTALL)
    try:
        told = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SetupError(f"`{path} --version`: {error}") from None
    if "Open MPI" in told or "OpenRTE" in told:
        return Mpirun(path, "openmpi")
    if "HYDRA" in told or "Intel(R) MPI" in told:
        return Mpirun(path, "hydra")
    first = (told.strip().splitlines() or ["nothing"])[0][:80]
    raise SetupError(f"`{path} --version` is neither Open MPI's nor MPICH's: {first!r}", _INSTALL)


class Mpi:
    """Launcher by `mpirun`.

    Args:
        mpirun: `find_mpirun()`.
        hosts: those of the hostfile; none is this machine.
        inputs: what launchers share.
    """

    def __init__(self, mpirun: Mpirun, hosts: Sequence[Host], inputs: Inputs) -> None:
        self._mpirun, self._hosts, self._limits = mpirun, hosts, inputs.limits
        self._environ = _NOTICE | allowed(inputs.environ, _OF_MPIRUN) | inputs.variables()

    def run(self, results: Path, round_: Round, watch: Watch) -> RoundEnd:
        """Serve a round."""
        if self._hosts:
            round_ = round_.model_copy(update={"cores": ()})  # those of this machine, which need not be theirs
        hosts = self._chosen(round_) if self._hosts else ()
        ranks = RanksOfMpirun(results, round_, hosts, partial(self._counts, round_))
        return attend(ranks, [self.command(results, round_)], results, round_, self._limits, watch)

    def command(self, results: Path, round_: Round) -> Command:
        """What is started for a round: a list of words, none of which a shell reads."""
        interface = None if self._hosts else LOOPBACK
        environ = self._environ | of_the_round(results / "rounds" / round_.name, round_, interface)
        exported = sorted(name for name in environ if self._hosts and _is_for_others(name))
        return Command([*self._words(round_, self._chosen(round_), exported), *worker(round_)], environ)

    def _chosen(self, round_: Round) -> Sequence[Host]:
        hosts = chosen(self._hosts, round_.nodes, round_.ranks_per_node) if self._hosts else [Host(_HERE, 1)]
        assert hosts is not None  # the plan has looked
        return hosts

    def _words(self, round_: Round, hosts: Sequence[Host], exported: Sequence[str]) -> list[str]:
        options = _open_mpi if self._mpirun.kind == "openmpi" else _hydra
        return [self._mpirun.path, *options(round_, hosts, exported)]

    def _counts(self, round_: Round, host: Host) -> str:
        """What the kernel of a host has counted; empty where mpirun does not bring it."""
        alone = round_.model_copy(update={"world_size": 1, "nodes": 1, "ranks_per_node": 1})
        words = [*self._words(alone, [host], ()), "cat", str(COUNTS)]
        try:
            told = subprocess.run(
                words,
                cwd="/",  # which all hosts have
                env=self._environ,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                timeout=_ASKED_S,
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return told.stdout.decode(errors="replace")


def _is_for_others(name: str) -> bool:
    """Whether ranks of other hosts get a variable. Its value is not part of the command, which all users can see."""
    return name not in OF_ONE_HOST and not name.startswith(_OF_MPIRUN) and name.isidentifier()


def _open_mpi(round_: Round, hosts: Sequence[Host], exported: Sequence[str]) -> list[str]:
    each = round_.ranks_per_node
    words = ["-np", str(round_.world_size), "--host", ",".join(f"{host.name}:{each}" for host in hosts)]
    # Ranks host by host, and cores left to the ranks: they bind themselves.
    words += ["--map-by", f"ppr:{each}:node", "--rank-by", "slot", "--bind-to", "none"]
    words += [word for name in exported for word in ("-x", name)]
    return words + (["--allow-run-as-root"] if os.geteuid() == 0 else [])


def _hydra(round_: Round, hosts: Sequence[Host], exported: Sequence[str]) -> list[str]:
    names = ",".join(host.name for host in hosts)
    words = ["-n", str(round_.world_size), "-ppn", str(round_.ranks_per_node), "-hosts", names, "-bind-to", "none"]
    return words + (["-genvlist", ",".join(exported)] if exported else [])


class RanksOfMpirun(Ranks):
    """The ranks of a round that one mpirun starts. Signals reach those on this host, words all of them.

    Args:
        results: the results folder.
        round_: the round.
        hosts: those of its ranks; none is this machine.
        counts: asks one of them what its kernel has counted.
    """

    def __init__(
        self,
        results: Path,
        round_: Round,
        hosts: Sequence[Host] = (),
        counts: Callable[[Host], str] = lambda _host: "",
    ) -> None:
        several = hosts if round_.nodes > 1 else ()
        super().__init__([f"host `{host.name}`" for host in several for _ in range(round_.ranks_per_node)])
        self._results, self._round, self._hosts, self._counts = results, round_, hosts, counts
        self._folder = results / "rounds" / round_.name
        self._spoke_at: float | None = None

    def start(self, command: Command, results: Path, folder: Path) -> None:
        """Start mpirun."""
        if self._round.nodes > 1:
            (folder / ASKED).touch()  # a network file system remembers what was not there
        super().start(command, results, folder)

    def codes(self) -> list[int | None]:
        """mpirun's exit status, or a failure of its own where a rank has said why it ended and mpirun goes on."""
        codes = super().codes()
        if codes == [None] and self._spoke_at is None and any(self._folder.glob("failure.*")):
            self._spoke_at = time.monotonic()
        late = self._spoke_at is not None and time.monotonic() - self._spoke_at > _LAST_WORDS_S
        return [1] if codes == [None] and late else codes

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all ranks, past mpirun: most would end it. Where there are several hosts, by a file."""
        if self._round.nodes > 1:
            with (self._folder / ASKED).open("a") as file:
                file.write(f"{number.name}\n")
            time.sleep(asked_every_s(self._round.world_size) + _STACKS_S)
            return
        for rank in self._here():
            with contextlib.suppress(psutil.Error):
                rank.send_signal(number)

    def outcome(self) -> RoundEnd | None:
        """Which host is gone, as Open MPI tells."""
        match = _LOST.search(self._told())
        return RoundEnd("failed", f"host `{match[1]}` lost its connection to `mpirun`") if match else None

    def _here(self) -> Iterator[psutil.Process]:
        """Ranks on this host: what mpirun started, not what they started themselves."""
        for mpirun in self.processes:
            found: set[int] = set()
            with contextlib.suppress(psutil.Error):
                for process in psutil.Process(mpirun.pid).children(recursive=True):
                    if process.cmdline() == worker(self._round) and process.ppid() not in found:
                        found.add(process.pid)
                        yield process

    def killed(self) -> Killed | None:
        """Which rank was ended by a signal, as mpirun tells; the ranks that it then ends are not told of."""
        told = self._told()
        if match := _KILLED_OPEN_MPI.search(told):
            return self._by_signal(int(match[1]), int(match[3]), match[2])
        process, number = _PROCESS_HYDRA.search(told), _SIGNAL_HYDRA.search(told)
        code = _CODE_HYDRA.search(told)
        if process is None or code is None:
            return None
        # Of a process that hydra ended itself it tells as well: then the rank that left no word is the one.
        spoke = {failure.rank for failure in read_failures(self._folder, self._round.world_size)}
        silent = [rank for rank in range(self._round.world_size) if rank not in spoke]
        found = (int(own[1]) for own in _RANK.finditer(told) if own[2] == process[1])  # hosts number theirs alike
        named = next((rank for rank in found if rank in silent), None)
        if number is None:
            # Of another host's process it may tell the number alone, as an exit status: not 1, which is a rank's own.
            own = int(code[1]) & 0x7F  # 128 more where a core was left
            if named is None or int(code[1]) == 1 or own not in signal.valid_signals():
                return None
            return self._by_signal(named, own, process[2])
        rank = named if named is not None else silent[0] if len(silent) == 1 else None
        if rank is None:
            return None
        return self._by_signal(rank, int(number[1]), process[2] if rank == named else None)

    def oom_kills(self) -> int:
        """Of hosts of a hostfile, how often the killed rank's kernel did so since that host's ranks started.

        They print its count as they start, and mpirun brings it once more when it is asked for.
        """
        if not self._hosts:
            return super().oom_kills()
        killed = self.killed() if self.processes else None
        if killed is None:
            return 0
        each = self._round.ranks_per_node
        node = killed.rank // each
        began = [int(own[3]) for own in _RANK.finditer(self._told()) if int(own[1]) // each == node]
        now = counted(self._counts(self._hosts[node]))
        return now - min(began) if began and now is not None else 0

    def _by_signal(self, rank: int, number: int, host: str | None) -> Killed:
        known = {one.value: one.name for one in signal.Signals}
        several = host is not None and self._round.nodes > 1
        return Killed(rank, known.get(number, f"signal {number}"), f"host `{host}`" if several else None)

    def ended(self) -> str:
        """How mpirun ended, and what it says about it."""
        code = self.processes[0].returncode
        return f"`mpirun` ended with status {code}{_because(self._told())}"

    def end(self) -> None:
        """Let mpirun end the ranks on all hosts; then what is left on this one."""
        for mpirun in self.processes:
            if mpirun.poll() is None:
                mpirun.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    mpirun.wait(_STOP_S)
        super().end()
        end_leftovers(self._results)

    def _told(self) -> str:
        # Open MPI speaks on standard error, hydra on standard output.
        return "".join((self._folder / name).read_text(errors="replace") for name in ("stderr.log", "stdout.log"))


_LOST = re.compile(r"Remote\s+daemon:\s+\S+\s+on\s+node\s+(\S+)")
_KILLED_OPEN_MPI = re.compile(
    r"process\s+rank\s+(\d+)\s+with\s+PID\s+\d+\s+on\s+node\s+(\S+)\s+exited\s+on\s+signal\s+(\d+)"
)
_PROCESS_HYDRA = re.compile(r"PID (\d+) RUNNING AT (\S+)")
_SIGNAL_HYDRA = re.compile(r"EXIT STRING: .*\(signal (\d+)\)")
_CODE_HYDRA = re.compile(r"EXIT CODE: (\d+)")
_RANK = re.compile(r"^rank (\d+) is process (\d+), after (\d+) OOM kills$", re.MULTILINE)
"""Of `worker/__main__.py`."""


def _because(told: str) -> str:
    """mpirun's own message, where it could not start: the first paragraph between its rules."""
    match = re.search(r"^-{20,}\n(.+?)\n(?:\n|-{20,})", told, re.DOTALL | re.MULTILINE)
    return f": {' '.join(match[1].split())[:300]}" if match else ""
