"""`python -m vitscale.launch.agent`: one host's part of a round, started there by the launcher `hosts` through ssh.

Standard input brings JSON lines: what to serve, then orders and a sign of life each second. Standard output tells as
often what became of the ranks. Where the input closes or falls silent, the tool or the network is gone: the ranks end.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vitscale.errors import ResultsError
from vitscale.hardware.oom_kills import oom_kills
from vitscale.hardware.position import Position
from vitscale.launch.inputs import allowed
from vitscale.launch.local import LOOPBACK, of_the_round, worker
from vitscale.launch.processes import Command, Ranks, begin, end_leftovers
from vitscale.records.round import ROUND, Round

LIFE_S = 1.0
"""How often both sides are heard of."""
SILENCE_S = 15.0
"""How long one side waits for the other before it takes it for gone."""
_POLL_S = 0.05
_CHUNK_BYTES = 65536


class Work(NamedTuple):
    """What a host has to serve."""

    results: str
    """Results folder, which all hosts share."""
    round: str
    """Name of the round."""
    node: int
    """Number of this host."""
    environ: dict[str, str]
    """Environment of the ranks; what is this host's own is added to it."""


class Lines:
    """JSON objects, one a line, that arrive at a descriptor; read without waiting."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._rest = descriptor, b""
        self.closed = False
        """Whether the other side has ended."""
        os.set_blocking(descriptor, False)

    def read(self) -> Iterator[dict[str, Any]]:
        """Those that have come. A line that is no object is not ours: login shells print what they like."""
        try:
            while chunk := os.read(self._descriptor, _CHUNK_BYTES):
                *lines, self._rest = (self._rest + chunk).split(b"\n")
                yield from filter(None, map(_parsed, lines))
            self.closed = True
        except BlockingIOError:
            pass


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(line)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


class Agent:
    """Starts, watches and ends the ranks of this host.

    Args:
        orders: a descriptor that brings the tool's lines.
        reports: one that takes ours.
    """

    def __init__(self, orders: int, reports: int) -> None:
        self._orders, self._reports = Lines(orders), reports
        self._ranks = Ranks()
        self._work: Work | None = None
        self._heard, self._oom_kills = time.monotonic(), oom_kills()
        self._told: tuple[float, list[int | None]] = (0.0, [])

    def run(self) -> None:
        """Obey until the tool is gone."""
        try:
            while self._carry_on():
                time.sleep(_POLL_S)
        except BrokenPipeError:
            pass
        finally:
            self._ranks.end()

    def _carry_on(self) -> bool:
        for message in self._orders.read():
            self._heard = time.monotonic()
            self._obey(message)
        if self._orders.closed or time.monotonic() - self._heard > SILENCE_S:
            return False
        self._report()
        return True

    def _obey(self, message: dict[str, Any]) -> None:
        match message:
            case {"serve": dict(work)}:
                self._work = Work(**work)
                self._prepare(self._work)
            case {"order": "start"} if self._work:
                self._start(self._work)
            case {"order": "signal", "signal": str(name)}:
                self._ranks.signal(signal.Signals[name])

    def _prepare(self, work: Work) -> None:
        """Look for the round, and end what an earlier tool left here."""
        results = Path(work.results)
        try:
            Round.read(results / "rounds" / work.round / ROUND)
        except ResultsError:
            self._tell({"failed": "does not see the results folder"})
            return
        end_leftovers(results)
        self._tell({"ready": True})

    def _start(self, work: Work) -> None:
        results = Path(work.results)
        round_ = Round.read(results / "rounds" / work.round / ROUND)
        for local_rank in range(round_.ranks_per_node):
            command = command_of(work, round_, local_rank)
            # Through ssh to the tool's own log: appending to one file from several hosts loses lines on a network disk.
            self._ranks.processes.append(begin(command, results, sys.stderr.fileno(), sys.stderr.fileno()))

    def _report(self) -> None:
        at, codes = time.monotonic(), self._ranks.codes()
        if codes != self._told[1] or at - self._told[0] > LIFE_S:
            self._told = at, codes
            self._tell({"codes": codes, "oom_kills": oom_kills() - self._oom_kills})

    def _tell(self, document: dict[str, Any]) -> None:
        os.write(self._reports, json.dumps(document).encode() + b"\n")


def command_of(work: Work, round_: Round, local_rank: int) -> Command:
    """What is started for a rank of this host."""
    each = round_.ranks_per_node
    place = Position(work.node * each + local_rank, local_rank, round_.world_size, each, "vitscale")
    folder = Path(work.results) / "rounds" / round_.name
    interface = LOOPBACK if round_.nodes == 1 else None
    given = allowed(os.environ) | work.environ
    return Command(worker(round_), given | of_the_round(folder, round_, interface) | place.variables())


if __name__ == "__main__":
    Agent(sys.stdin.fileno(), sys.stdout.fileno()).run()
