"""Ranks of which somebody else started one process each: torchrun, srun, mpirun, and whoever sets their variables.

Each of these processes runs the same command. Rank 0's plans, locks, measures and analyses; the others do as it says.
Each starts a worker of its own for every round, so that a launch begins with fresh processes as by other launchers.
"""

from __future__ import annotations

import contextlib
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from vitscale.errors import Interrupted, SetupError
from vitscale.hardware.oom_kills import oom_kills
from vitscale.hardware.position import Position
from vitscale.launch.attend import attend
from vitscale.launch.board import GONE, Board, Kind, Order, Report
from vitscale.launch.inputs import Inputs
from vitscale.launch.local import LOOPBACK, Local, Place
from vitscale.launch.outcome import RoundEnd, Watch
from vitscale.launch.processes import Command, Ranks, poll_s
from vitscale.records.round import ROUND, Round

_POLL_S = 0.05
_LIFE_S = 1.0
"""How often rank 0 is heard of. The others wait for it as long as for a start, as shared folders lag."""
_ACKNOWLEDGED_S = 10.0
"""Longest wait for the other ranks to end their workers."""
_SAME_FOLDER = "`--out` has to be one folder for all of them, shared by the hosts"


class Env(Local):
    """Launcher inside a starter that told this process its position."""

    def __init__(self, position: Position, inputs: Inputs) -> None:
        super().__init__(inputs)
        self.position, self.grace_s = position, inputs.limits.grace_s
        self._everywhere: Everywhere | None = None

    def place(self, node: int) -> Place:
        """Where this rank is started: here. The loopback interface reaches the others where there is one host."""
        assert node == self.position.node
        alone = self.position.local_world_size == self.position.world_size
        return Place((), LOOPBACK if alone else None)

    @contextlib.contextmanager
    def leading(self, results: Path) -> Iterator[None]:
        """Be rank 0 in a results folder that is `results.opened`; at the end the other ranks are dismissed."""
        board = Board(results)
        board.clear()
        self._everywhere = Everywhere(board, self.position, self._limits.start_timeout_s)
        over = threading.Event()
        heard = threading.Thread(target=_show_life, args=(board, over), name="lead", daemon=True)
        heard.start()
        try:
            yield
        finally:
            over.set()
            heard.join()
            self._everywhere.order("over")

    def run(self, results: Path, round_: Round, watch: Watch) -> RoundEnd:
        """Serve a round, as rank 0."""
        assert self._everywhere is not None
        if round_.nodes > 1:
            round_ = round_.model_copy(update={"cores": ()})  # those of this machine, which need not be the others'
        command = self.command(results / "rounds" / round_.name, round_, 0)
        return attend(self._everywhere, [command], results, round_, self._limits, watch)

    def follow(self, results: Path) -> None:
        """Do as rank 0 says until it is over.

        Raises:
            SetupError: rank 0 does not come, or is gone.
        """
        follower = _Follower(self, results)
        deadline = time.monotonic() + self._limits.start_timeout_s
        while not (results / ".lock").exists():  # before it, rank 0 looks whether the folder is empty
            if time.monotonic() > deadline:
                raise SetupError(f"rank 0 has not opened `{results}`", _SAME_FOLDER)
            time.sleep(_POLL_S)
        code = 1
        try:
            while follower.carry_on():
                follower.require_lead(self._limits.start_timeout_s)
                time.sleep(poll_s(self.position.world_size, _POLL_S))
        except (KeyboardInterrupt, Interrupted):
            code = -signal.SIGTERM
            follower.ask_to_stop()
            raise
        finally:
            follower.leave(code)


def _show_life(board: Board, over: threading.Event) -> None:
    while not over.wait(_LIFE_S):
        with contextlib.suppress(OSError):  # a full disk is told by what needs it
            board.show_life()


class Everywhere(Ranks):
    """The ranks of a round as rank 0 sees them: its own worker, and those of the others by what they report."""

    def __init__(self, board: Board, position: Position, patience_s: float) -> None:
        super().__init__()
        self._board, self._position, self._patience_s = board, position, patience_s
        self._world_size = position.world_size
        self._order = Order(0, "end", "", [])
        self._started = 0

    def start(self, command: Command, results: Path, folder: Path) -> None:
        """Start the workers of all ranks."""
        self.processes = []
        self._wait_for_all()
        self.order("start", folder.name)
        self._started = self._order.number
        super().start(command, results, folder)

    def codes(self) -> list[int | None]:
        """Exit status of each rank's worker, None of those that work."""
        reports = self._reports()
        others = (reports.get(rank) for rank in range(1, self._world_size))
        return [*super().codes(), *(one.code if one and self._is_new(one) else None for one in others)]

    def _is_new(self, report: Report) -> bool:
        return report.order >= self._started or report.order == GONE

    def host(self, rank: int) -> str | None:
        """The host of a rank, as its process names it."""
        if self._position.local_world_size == self._world_size:
            return None
        report = self._reports().get(rank)
        name = socket.gethostname() if rank == 0 else report.host if report else ""
        return f"host `{name}`" if name else None

    def oom_kills(self) -> int:
        """How often the kernels of all hosts have ended a process for want of memory."""
        return super().oom_kills() + sum(report.oom_kills for report in self._reports().values())

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all ranks."""
        super().signal(number)
        self.order("signal", number.name)

    def end(self) -> None:
        """End the workers of all ranks."""
        super().end()
        self.order("end")
        deadline = time.monotonic() + _ACKNOWLEDGED_S
        while time.monotonic() < deadline:
            if all(report.order in (self._order.number, GONE) for report in self._reports().values()):
                return
            time.sleep(poll_s(self._world_size, _POLL_S))

    def order(self, kind: Kind, what: str = "") -> None:
        """Give the next order."""
        words = [report.word for report in self._reports().values()]
        self._order = Order(self._order.number + 1, kind, what, words)
        self._board.publish(self._order)

    def _reports(self) -> dict[int, Report]:
        return self._board.reports(self._world_size)

    def _wait_for_all(self) -> None:
        deadline = time.monotonic() + self._patience_s
        while missing := [rank for rank in range(1, self._world_size) if rank not in self._reports()]:
            if time.monotonic() > deadline:
                named = ", ".join(map(str, missing[:8]))
                raise SetupError(f"of {self._world_size} ranks these have not come: {named}", _SAME_FOLDER)
            time.sleep(poll_s(self._world_size, _POLL_S))


class _Follower:
    """A rank other than 0."""

    def __init__(self, launcher: Env, results: Path) -> None:
        self._launcher, self._results, self._board = launcher, results, Board(results)
        self._oom_kills = oom_kills()
        self._report = Report(secrets.token_hex(8), 0, None, socket.gethostname())
        self._told: Report | None = None
        self._heard, self._heard_at = self._board.life(), time.monotonic()
        self._round: Round | None = None
        self.ranks = Ranks()

    def carry_on(self) -> bool:
        """Carry out an order where there is a new one, and report; False when it is over."""
        order = self._board.order()
        if order and self._report.word in order.words and order.number > self._report.order:
            if order.kind == "over":
                return False
            self._carry_out(order)
            self._report = self._report._replace(order=order.number)
        code = self.ranks.codes()[0] if self.ranks.processes else None
        self._report = self._report._replace(code=code, oom_kills=oom_kills() - self._oom_kills)
        rank = self._launcher.position.rank
        if self._report != self._told or not self._board.has_report(rank):
            self._told = self._report
            self._board.report(rank, self._report)
        return True

    def require_lead(self, patience_s: float) -> None:
        """Look whether rank 0 is still there.

        Raises:
            SetupError: it was not heard of for so long.
        """
        heard, now = self._board.life(), time.monotonic()
        if heard != self._heard:
            self._heard, self._heard_at = heard, now
        elif now - self._heard_at > patience_s:
            raise SetupError(f"rank 0 was not heard of for {patience_s:g} s", _SAME_FOLDER)

    def leave(self, code: int) -> None:
        """End the worker, and say so to whom it may concern."""
        self.ranks.end()
        self._board.report(self._launcher.position.rank, self._report._replace(order=GONE, code=code))

    def _carry_out(self, order: Order) -> None:
        if order.kind == "signal":
            self.ranks.signal(signal.Signals[order.what])
            return
        self.ranks.end()
        self.ranks = Ranks()
        if order.kind == "start":
            folder = self._results / "rounds" / order.what
            self._round = Round.read(folder / ROUND)
            command = self._launcher.command(folder, self._round, self._launcher.position.rank)
            self.ranks.start(command, self._results, folder)

    def ask_to_stop(self) -> None:
        """Let a rank that trains write its part of a checkpoint."""
        if self._round is None or not any(entry.checkpoints for entry in self._round.entries):
            return
        self.ranks.signal(signal.SIGTERM)
        deadline = time.monotonic() + self._launcher.grace_s
        while None in self.ranks.codes() and time.monotonic() < deadline:
            time.sleep(_POLL_S)
