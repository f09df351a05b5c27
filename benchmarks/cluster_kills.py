"""Fifty blows at random moments against small studies, by every launcher that this machine can start.

Struck are a rank, the tool itself, `mpirun`, the link of a host of `lab`, the agent of a host and the scheduler's job.
After each: the launch in flight ends with a reason that names what was struck, within 30 s; what was finished is
unchanged to the byte; no process is left. The same command is started again until every run has its launches.

Longer than 300 lines: the ways to strike and what is looked at after each are read side by side.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import psutil

from benchmarks import kills
from benchmarks.clusters import LAUNCHERS, Place, place
from benchmarks.figure import VITSCALE, Failed, Figure, below, say, shown
from benchmarks.killing import SEED, agents_of, alive, descendants, finished, ranks_in, wait_gone, working_in
from vitscale import units
from vitscale.errors import SetupError
from vitscale.launch import jobs
from vitscale.records.round import read_heartbeats

NOTICED_S = 30.0
PATIENCE_S = 120.0
"""After so long without a sign the command hangs."""
IDLE_STUDIES = 5
"""After so many studies without a blow there will be none: a single one may end before its moment has come."""

RANKS = 2
COMMAND = [
    "vitscale", "run", "quick", f"measure.launches={kills.LAUNCHES}", "measure.warmup_steps=1", "measure.steps=40",
    "global_batch=16", "protocol=strong", f"world_size={RANKS}", "launch.step_timeout_s=10",
]  # fmt: skip


@dataclass
class Study:
    """A command that is under way."""

    parent: psutil.Popen
    folder: Path
    environ: Mapping[str, str] = field(default_factory=dict)
    """Of commands that strike it."""

    @property
    def ranks(self) -> dict[int, psutil.Process]:
        """The ranks of the round in flight."""
        return ranks_in(self.folder)

    @property
    def round(self) -> Path | None:
        """Folder of the round in flight."""
        return max((self.folder / "rounds").glob("*-w*"), default=None)

    @property
    def steps(self) -> int:
        """Steps that all ranks have taken in the launch in flight; -1 before a rank has said anything."""
        beats = read_heartbeats(self.round, RANKS, RANKS) if self.round and self.ranks else []
        return min((beat.step if beat else -1 for beat in beats), default=-1)

    def ends(self) -> dict[Path, dict[str, str | None]]:
        """Every manifest of a launch that did not end well."""
        told = {path: json.loads(path.read_text()) for path in self.folder.glob("runs/*/launch*/manifest.json")}
        return {path: one for path, one in told.items() if one["status"] != "ok"}


class Blow(NamedTuple):
    """A way to strike."""

    name: str
    launcher: str
    settings: tuple[str, ...]
    strike: Callable[[Study, random.Random], str | None]
    """Strikes, and gives the pattern of the reason that names it; None where nothing is there to be struck yet."""
    ends_command: bool = False


def strike_rank(study: Study, rng: random.Random) -> str | None:
    """SIGKILL to a random rank."""
    ranks = study.ranks
    if not ranks:
        return None
    rank = rng.choice(sorted(ranks))
    ranks[rank].kill()
    return rf"rank {rank}( on \S+ \S+)? was ended by SIGKILL"


def strike_tool(study: Study, rng: random.Random) -> str | None:
    """SIGKILL to the tool itself."""
    del rng
    study.parent.kill()
    return "its process ended before the launch was finished"


def strike_mpirun(study: Study, rng: random.Random) -> str | None:
    """SIGKILL to mpirun."""
    del rng
    for one in descendants(study.parent):
        if one.name().startswith(("mpirun", "mpiexec", "prterun", "orterun")):
            one.kill()
            return "mpirun"
    return None


def strike_link(study: Study, rng: random.Random) -> str | None:
    """Take a host's link down, once ranks train: before that `launch.start_timeout_s` is the limit."""
    if study.steps < 1:
        return None
    switch, port = f"vitscale-{study.parent.pid}-switch", f"port{rng.randrange(2)}"
    done = subprocess.run(["ip", "-n", switch, "link", "set", port, "down"], capture_output=True, check=False)
    return None if done.returncode else r"ranks? [\d, ]+ finished no step for 10 s|host \S+ has not answered"


def strike_agent(study: Study, rng: random.Random) -> str | None:
    """SIGKILL to what leads the ranks of a random host."""
    agents = agents_of(study.ranks.values())
    if not agents:
        return None
    rng.choice(agents).kill()
    return r"host|agent|rank \d+ was ended by SIGKILL"


def strike_job(study: Study, rng: random.Random) -> str | None:
    """`scancel` of the job that the command waits for, once a rank of it has spoken."""
    del rng
    round_name, job = next(iter(jobs.unfinished(study.folder).items()), ("", ""))
    if not job or read_heartbeats(study.folder / "rounds" / round_name, 1, 1) == [None]:
        return None
    subprocess.run(["scancel", job], env={**os.environ, **study.environ}, check=True, capture_output=True)
    return "cancelled"


TWO_HOSTS = ("nodes=2", "ranks_per_node=1")
BLOWS = (
    Blow("rank", "local", (), strike_rank),
    Blow("tool", "local", (), strike_tool, ends_command=True),
    Blow("rank", "mpi", (), strike_rank),
    Blow("mpirun", "mpi", (), strike_mpirun),
    Blow("rank", "lab", TWO_HOSTS, strike_rank),
    Blow("link", "lab", TWO_HOSTS, strike_link),
    Blow("agent", "hosts", TWO_HOSTS, strike_agent),
    Blow("job", "slurm", (), strike_job),
)


@dataclass(frozen=True)
class Struck:
    """One blow and what was found after it."""

    blow: Blow
    steps: int
    """Steps of the launch in flight."""
    reason: str
    named: bool
    noticed_s: float
    left: int


@dataclass
class Campaign:
    """Studies by one launcher that are struck until there were enough blows, then carried to their end."""

    root: Path
    place: Place
    blows: Sequence[Blow]
    wanted: int
    rng: random.Random
    struck: list[Struck] = field(default_factory=list)
    damaged: int = 0
    short_of: int = 0
    studies: int = 0

    def carry(self) -> None:
        """All of them.

        Raises:
            Failed: a command hangs, does not get to its end, or nothing of it is there to be struck.
        """
        idle = 0
        while len(self.struck) < self.wanted:
            before = len(self.struck)
            folder = self.root / f"{self.place.launcher}{self.studies}"
            self.studies += 1
            once: dict[Path, str] = {}
            for _ in range(3 * self.wanted + 3):
                if self._start(folder, once) == 0:
                    break
            else:
                raise Failed(f"not done: {(self.root / 'log').read_text()[-2000:]}")
            now = finished(folder)
            self.damaged += sum(now.get(path) != digest for path, digest in once.items())
            self.short_of += kills.short_of(folder)
            idle = 0 if len(self.struck) > before else idle + 1
            if idle == IDLE_STUDIES:
                raise Failed(f"{idle} studies by `{self.place.launcher}` in turn, and nothing was struck")

    def _start(self, folder: Path, once: dict[Path, str]) -> int:
        flags = ["--launcher", self.place.launcher, "--out", str(folder)]
        command = [*self.place.prefix, VITSCALE, *COMMAND[1:], *self.blows[0].settings, *self.place.settings, *flags]
        environ = {**os.environ, **self.place.environ}
        with (self.root / "log").open("ab") as log:
            streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            parent = psutil.Popen(command, cwd=self.root, env=environ, **streams)
        study = Study(parent, folder, self.place.environ)
        try:
            while len(self.struck) < self.wanted and parent.poll() is None:
                self._strike(study, once)
            return int(parent.wait(timeout=600))
        except psutil.TimeoutExpired:
            raise Failed(f"`{shown(command)}` hangs") from None
        finally:
            if parent.poll() is None:
                parent.kill()
                parent.wait()

    def _strike(self, study: Study, once: dict[Path, str]) -> None:
        """Wait a random time, strike, and look at what is left; nothing if the command ends before."""
        blow, until = self.rng.choice(self.blows), time.monotonic() + self.rng.uniform(0.3, 15)
        while study.parent.poll() is None:
            before, ends, steps = finished(study.folder), study.ends(), study.steps
            doomed = [*study.ranks.values()]
            pattern = blow.strike(study, self.rng) if time.monotonic() >= until else None
            if pattern is not None:
                break
            time.sleep(0.1)
        else:
            return
        began = time.monotonic()
        once.update(before)
        reason = self._after_tool(study, doomed) if blow.ends_command else _next_end(study, set(ends))
        noticed_s = time.monotonic() - began
        left, _ = wait_gone(doomed, study.folder if blow.ends_command else None)
        now = finished(study.folder)
        self.damaged += sum(now.get(path) != digest for path, digest in before.items())
        if reason is None:  # the launches of the round were finished already: nothing was lost, nothing is to be named
            return
        named = blow.ends_command or re.search(pattern, reason) is not None
        self.struck.append(Struck(blow, steps, reason, named, noticed_s, left))
        say(f"  {len(self.struck)} of {self.wanted}: {blow.name} of {blow.launcher}, step {steps}: {reason}")

    def _after_tool(self, study: Study, doomed: list[psutil.Process]) -> str:
        """Wait until its ranks are gone too."""
        study.parent.wait()
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and (any(map(alive, doomed)) or working_in(study.folder)):
            time.sleep(0.1)
        return "all of its processes are gone"


def _next_end(study: Study, before: set[Path]) -> str | None:
    """The reason of the first launch that ends badly from now on; None where the round had nothing left to lose."""
    round_, deadline = study.round, time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        gone = study.parent.poll() is not None
        if found := set(study.ends()) - before:
            return str(study.ends()[found.pop()]["reason"])
        if gone or study.round != round_:
            return None
        time.sleep(0.1)
    raise Failed(f"nothing was noticed within {PATIENCE_S:.0f} s")


def measure(short: bool) -> list[Figure]:
    """50 blows, shared out over the launchers in turn; 5 where only the script is tried."""
    total, rng = 5 if short else 50, random.Random(SEED)
    campaigns: list[Campaign] = []
    away: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        for number, launcher in enumerate(reversed(LAUNCHERS)):  # `local`, which is always there, takes what is left
            share = (total - sum(one.wanted for one in campaigns)) // (len(LAUNCHERS) - number)
            blows = [blow for blow in BLOWS if blow.launcher == launcher]
            try:
                with place(launcher, Path(name)) as there:
                    campaigns.append(Campaign(Path(name), there, blows, share, rng))
                    campaigns[-1].carry()
            except SetupError as error:
                away.append(f"{launcher}: {error.message}")
    struck = [one for campaign in campaigns for one in campaign.struck]
    if not struck:
        raise Failed(f"nothing could be struck: {'; '.join(away)}")
    _print_table(struck)
    return _figures(struck, campaigns, f"not struck: {'; '.join(away)}" if away else "")


def _figures(struck: list[Struck], campaigns: list[Campaign], note: str) -> list[Figure]:
    command, count = shown(COMMAND), f"blows: {len(struck)}, studies: {sum(one.studies for one in campaigns)}"
    wrong = sum(not one.named for one in struck)
    left = sum(one.left for one in struck)
    damaged, short_of = (sum(getattr(one, name) for one in campaigns) for name in ("damaged", "short_of"))
    noticed = [one.noticed_s for one in struck]
    slowest = max(noticed)
    return [
        Figure("blows whose reason names something else", str(wrong), count, "0", not wrong, command, note),
        Figure("finished launches that a blow changed", str(damaged), count, "0", not damaged, command),
        Figure("runs without all their launches at the end", str(short_of), count, "0", not short_of, command),
        Figure("processes left after a blow", str(left), count, "0", not left, command),
        below("time until a blow is noticed", noticed, NOTICED_S, units.seconds, command),
        Figure("the longest", units.seconds(slowest), count, f"< {NOTICED_S:.0f} s", slowest < NOTICED_S, command),
    ]


def _print_table(struck: list[Struck]) -> None:
    print("| blow | launcher | struck | step | reason | named | noticed after s | left |")
    print("|---|---|---|---|---|---|---|---|")
    for number, one in enumerate(struck, start=1):
        cells = (number, one.blow.launcher, one.blow.name, one.steps, one.reason, "yes" if one.named else "NO")
        print(f"| {' | '.join(str(cell) for cell in (*cells, f'{one.noticed_s:.1f}', one.left))} |")
    print(flush=True)
