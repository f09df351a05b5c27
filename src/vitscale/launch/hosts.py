"""Ranks on the hosts of `launch.hostfile`, each reached by ssh: an agent there starts, watches and ends them.

ssh gets a fixed list of words, and the host's shell one command in which nothing of the user's stands; what is to be
done goes in as JSON on standard input. All hosts share the results folder: ranks meet at a file of it.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitscale.errors import SetupError
from vitscale.launch.agent import LIFE_S, SILENCE_S, Lines, Work
from vitscale.launch.attend import attend
from vitscale.launch.hostfile import Host, chosen
from vitscale.launch.inputs import OF_ONE_HOST, Inputs, allowed
from vitscale.launch.outcome import RoundEnd, Watch
from vitscale.launch.processes import Command, Process, Ranks, begin
from vitscale.records.round import Round

_OPTIONS = (
    "-T", "-a", "-x",
    "-o", "BatchMode=yes",
    "-o", "ConnectTimeout=10",
    "-o", "ClearAllForwardings=yes",
    "-o", "ControlMaster=no",
)  # fmt: skip
"""No terminal, no question, nothing forwarded, and a connection that outlives no round."""
_ANSWER_S = 30.0
"""Longest wait for a host to connect and its agent to speak."""
_STOP_S = 5.0
"""Longest wait for the agents to end their ranks and themselves."""
_GONE = 255
"""Exit status of ranks that are gone with their host; ssh's own for a connection that failed."""
_NAMED = 4


def find_ssh() -> str:
    """Look for `ssh`.

    Raises:
        SetupError: there is none.
    """
    path = shutil.which("ssh")
    if path is None:
        raise SetupError("the launcher `hosts` needs `ssh`, not found", "apt-get install openssh-client")
    return path


class Hosts:
    """Launcher by ssh.

    Args:
        ssh: `find_ssh()`.
        hosts: those of the hostfile.
        inputs: what launchers share.
    """

    def __init__(self, ssh: str, hosts: Sequence[Host], inputs: Inputs) -> None:
        self._ssh, self._hosts, self._inputs = ssh, hosts, inputs
        given = allowed(inputs.environ)
        self._environ = {name: given[name] for name in given if name not in OF_ONE_HOST} | inputs.variables()
        self._met: set[str] = set()

    def run(self, results: Path, round_: Round, watch: Watch) -> RoundEnd:
        """Serve a round.

        Raises:
            SetupError: a host does not answer, and has not before: the hostfile is wrong, rather than the host gone.
        """
        round_ = round_.model_copy(update={"cores": ()})  # those of this machine, which need not be theirs
        hosts = chosen(self._hosts, round_.nodes, round_.ranks_per_node)
        assert hosts is not None  # the plan has looked
        ranks = RanksOfHosts(hosts, round_, self._environ)
        commands = (Command(self.words(host), self._inputs.environ) for host in hosts)
        end = attend(ranks, commands, results, round_, self._inputs.limits, watch)
        self._met |= {one.host.name for one in ranks.agents if one.ready}
        if strange := [one for one in ranks.agents if one.host.name not in self._met and one.reason]:
            reach = shlex.join(self.words(strange[0].host)[:-1])
            raise SetupError(
                _listed(strange), f"`{reach} true` has to work, with this folder and this Python there too"
            )
        return end

    def words(self, host: Host) -> list[str]:
        """What is started for a host."""
        return [
            self._ssh,
            *_OPTIONS,
            "--",
            host.name,
            f"exec {shlex.quote(sys.executable)} -P -m vitscale.launch.agent",
        ]


class _Agent:
    """The agent of one host, as it is seen from here."""

    def __init__(self, host: Host, ranks: int, log: Path, process: Process) -> None:
        assert process.stdout is not None
        self.host, self._log, self._process = host, log, process
        self._lines = Lines(process.stdout.fileno())
        self.ready = False
        self.reason: str | None = None
        """Why the host is of no use, or None."""
        self._codes: list[int | None] = [None] * ranks
        self.oom_kills = 0
        self._heard = self._spoke = time.monotonic()

    @property
    def codes(self) -> list[int | None]:
        """Exit status of each of its ranks, None of those that work."""
        return [_GONE if code is None and self.reason else code for code in self._codes]

    def tell(self, document: dict[str, Any]) -> None:
        """Send a line."""
        assert self._process.stdin is not None
        self._spoke = time.monotonic()
        with contextlib.suppress(OSError):  # it is gone: that is seen when it is listened to
            self._process.stdin.write(json.dumps(document).encode() + b"\n")
            self._process.stdin.flush()

    def listen(self) -> None:
        """Hear what it has said, and say that we are here."""
        ended = self._process.poll() is not None
        for message in self._lines.read():
            self._heard = time.monotonic()
            self.ready = self.ready or "ready" in message
            self.reason = self.reason or message.get("failed")
            if codes := message.get("codes"):
                self._codes, self.oom_kills = codes, message.get("oom_kills", 0)
        self.reason = self.reason or self._lost(ended)
        if time.monotonic() - self._spoke > LIFE_S:
            self.tell({"order": "stay"})

    def _lost(self, ended: bool) -> str | None:
        silent_s = time.monotonic() - self._heard
        if ended and self.ready:
            return f"lost its agent{self._last_words()}"
        if ended:
            return f"did not answer{self._last_words()}"
        if silent_s > (SILENCE_S if self.ready else _ANSWER_S):
            return f"was not heard of for {silent_s:.0f} s"
        return None

    def _last_words(self) -> str:
        """What ssh or the agent said last. ssh names the user, which no record does."""
        said = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        last = "".join(letter for letter in (said or [""])[-1] if letter.isprintable())[:200]
        return f": {re.sub(r'[^ ]*@', '', last)}" if last else ""

    def dismiss(self) -> None:
        """Let it end its ranks and itself."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def gather(self, log: Path) -> None:
        """Put what it and its ranks said into the round's log."""
        assert self._process.stdout is not None
        self._process.stdout.close()
        if said := self._log.read_bytes():
            with log.open("ab") as file:
                file.write(f"--- host {self.host.name}\n".encode() + said)
        self._log.unlink()


class RanksOfHosts(Ranks):
    """The ranks of a round on several hosts, by what their agents say."""

    def __init__(self, hosts: Sequence[Host], round_: Round, environ: dict[str, str]) -> None:
        super().__init__()
        self._hosts, self._round, self._environ = hosts, round_, environ
        self.agents: list[_Agent] = []
        self._started = False
        self._logs: Path | None = None

    def start(self, command: Command, results: Path, folder: Path) -> None:
        """Connect to the next host; ranks are started when all hosts are there."""
        node = len(self.agents)
        self._logs, log = folder, folder / f"stderr.node{node:03d}.log"
        with log.open("wb") as err:
            process = begin(command, results, subprocess.PIPE, err)
        self.processes.append(process)
        agent = _Agent(self._hosts[node], self._round.ranks_per_node, log, process)
        self.agents.append(agent)
        agent.tell({"serve": Work(str(results.resolve()), self._round.name, node, self._environ)._asdict()})

    def codes(self) -> list[int | None]:
        """Exit status of each rank, None of those that work; of all ranks until every host has answered or failed."""
        for agent in self.agents:
            agent.listen()
        if not self._started:
            if not all(agent.ready or agent.reason for agent in self.agents):
                return [None] * self._round.world_size
            self._started = True
            if not any(agent.reason for agent in self.agents):
                self._tell_all({"order": "start"})
        return [code for agent in self.agents for code in agent.codes]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all ranks."""
        self._tell_all({"order": "signal", "signal": number.name})

    def _tell_all(self, document: dict[str, Any]) -> None:
        for agent in self.agents:
            agent.tell(document)

    def outcome(self) -> RoundEnd | None:
        """Which host is gone; else its ranks know."""
        lost = [agent for agent in self.agents if agent.reason]
        return RoundEnd("failed", _listed(lost)) if lost else None

    def host(self, rank: int) -> str:
        """The host of a rank."""
        return f"host `{self._hosts[rank // self._round.ranks_per_node].name}`"

    def oom_kills(self) -> int:
        """How often the kernels of all hosts have ended a process for want of memory, since their agents started."""
        return sum(agent.oom_kills for agent in self.agents)

    def end(self) -> None:
        """Let the agents end the ranks and themselves, then end ssh, and gather what was said."""
        for agent in self.agents:
            agent.dismiss()
        deadline = time.monotonic() + _STOP_S
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        super().end()
        for agent in self.agents:
            assert self._logs is not None
            agent.gather(self._logs / "stderr.log")


def _listed(agents: Sequence[_Agent]) -> str:
    told = "; ".join(f"host `{agent.host.name}` {agent.reason}" for agent in agents[:_NAMED])
    return told + (f"; and {len(agents) - _NAMED} more hosts" if len(agents) > _NAMED else "")
