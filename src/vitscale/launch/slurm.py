"""Ranks started by SLURM: a job or an array's element for each round, or steps of the job that this process runs in.

A job goes on without this process. What a round came to is read from its records and from SLURM's state of the job,
never from an exit status alone.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vitscale.config.study import LaunchSection
from vitscale.errors import Interrupted, LeftRunning, SetupError
from vitscale.launch import jobs
from vitscale.launch.attend import attend, scrub, watched, write_round
from vitscale.launch.inputs import Inputs, allowed
from vitscale.launch.job import RanksOfJob, RanksOfStep
from vitscale.launch.local import LOOPBACK, of_the_round, worker
from vitscale.launch.outcome import RoundEnd, Watch
from vitscale.launch.processes import Command, poll_s, undisturbed
from vitscale.launch.sbatch import ARRAY, SCRIPT, array, resources, script, srun
from vitscale.launch.scheduler import Cluster, Scheduler, require_slurm
from vitscale.records.round import ROUND, Beat, Round, read_heartbeats
from vitscale.records.writer import write_whole

_POLL_S = 0.2
_OF_SLURM = ("SLURM_CONF", "SLURM_CLUSTERS", "SBATCH_")
_DEFAULTS = {
    "SBATCH_PARTITION": "partition",
    "SBATCH_ACCOUNT": "account",
    "SBATCH_QOS": "qos",
    "SBATCH_CONSTRAINT": "constraint",
    "SBATCH_TIMELIMIT": "time_limit",
}
"""Variables that hold where the study says nothing; before the file, SLURM takes all that begin with SBATCH_."""


class Slurm:
    """Launcher by jobs."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs, self._scheduler = inputs, Scheduler(inputs.environ)
        self.takes_all = inputs.limits.job_array

    def files(self, results: Path, rounds: Sequence[Round]) -> Iterator[tuple[str, str]]:
        """Path and text of what SLURM is given for rounds; of an array's elements, which are alike, the first's."""
        for alike in self._alike(rounds):
            first = alike[0]
            if len(alike) > 1:
                yield f"rounds/{first.name}/{ARRAY}", array(results, alike, self._inputs.limits)
            yield f"rounds/{first.name}/{SCRIPT}", self._script(results, first)

    def submit(self, results: Path, rounds: Sequence[Round]) -> str | None:
        """Hand over rounds, as many as SLURM takes: what it refuses is tried again, and told, when its turn comes."""
        known = jobs.unfinished(results)
        taken: dict[str, str] = {}
        with _leaving(results), contextlib.suppress(SetupError):
            for alike in self._alike(rounds):
                if not any(round_.name in known for round_ in alike):
                    taken |= self._submit_alike(results, alike)
        told = ", ".join(f"{name} is job {job}" for name, job in taken.items())
        return f"SLURM: {told}" if told else None

    def _alike(self, rounds: Sequence[Round]) -> list[list[Round]]:
        """Rounds that are handed over together: with arrays, those that ask for the same."""
        if not self.takes_all:
            return [[round_] for round_ in rounds]
        groups: dict[tuple[tuple[str, str | None], ...], list[Round]] = {}
        for round_ in rounds:
            groups.setdefault(tuple(resources(round_, self._inputs.limits).items()), []).append(round_)
        return [*groups.values()]

    def left(self, results: Path) -> list[Round]:
        """Rounds whose jobs were submitted by an earlier process; an examination's is ended, as nobody asks for it.

        Raises:
            SetupError: SLURM does not say whether it took a job.
        """
        self._look_up(results)
        rounds = [Round.read(results / "rounds" / name / ROUND) for name in jobs.unfinished(results)]
        for round_ in rounds:
            if round_.examine:
                self.withdraw(results, round_)
        return [round_ for round_ in rounds if not round_.examine]

    def run(self, results: Path, round_: Round, watch: Watch) -> RoundEnd:
        """Serve a round: submit it, unless that is done, and wait for its end.

        Raises:
            SetupError: SLURM refuses it.
            LeftRunning: this process was asked to stop, and jobs go on. An examination's is ended with it.
        """
        with self._ending(results, round_) if round_.examine else _leaving(results):
            job = jobs.unfinished(results).get(round_.name) or self._submit(results, [round_])[round_.name]
            folder = results / "rounds" / round_.name
            ranks = RanksOfJob(self._scheduler, job, folder)
            _await_start(ranks, folder, round_, watch)
            end = watched(ranks, folder, round_, self._inputs.limits, watch)
            ranks.end()
            scrub(folder)
            jobs.note_ended(results, round_.name, job, end.status)
            return end

    @contextlib.contextmanager
    def _ending(self, results: Path, round_: Round) -> Iterator[None]:
        """End the job of a round where this process is asked to stop."""
        try:
            yield
        except (KeyboardInterrupt, Interrupted):
            self.withdraw(results, round_)
            raise

    def withdraw(self, results: Path, round_: Round) -> None:
        """End the job of a round, if it has one that is not known to have ended."""
        with _leaving(results):
            if job := jobs.unfinished(results).get(round_.name):
                folder = results / "rounds" / round_.name
                RanksOfJob(self._scheduler, job, folder).end()
                scrub(folder)
                jobs.note_ended(results, round_.name, job, "killed")

    def _look_up(self, results: Path) -> None:
        """Write down the jobs that SLURM took and whose numbers nobody heard: a process was killed, or it was slow."""
        for word, names in jobs.unanswered(results).items():
            # An element's number is the place of its round: those that ended long ago are not in the queue any more.
            elements = {int(job.partition("_")[2] or 0): job for job in self._scheduler.found(word)}
            found = {name: elements[number] for number, name in enumerate(names) if number in elements}
            jobs.note_submitted(results, found)
            for name in names:
                if name not in found:
                    jobs.note_not_taken(results, name)

    def _script(self, results: Path, round_: Round) -> str:
        return script(results, round_, self._inputs.limits, self._inputs.variables())

    def _submit_alike(self, results: Path, alike: Sequence[Round]) -> dict[str, str]:
        """Hand over rounds as an array; where SLURM takes none only the first, so that the others follow it."""
        if len(alike) > 1:
            with contextlib.suppress(SetupError):
                return self._submit(results, alike)
        return self._submit(results, alike[:1])

    def _submit(self, results: Path, alike: Sequence[Round]) -> dict[str, str]:
        """Hand over one round, or several as an array; each one's job."""
        self._look_up(results)
        known = jobs.unfinished(results)
        if alike[0].name in known:
            return {round_.name: known[round_.name] for round_ in alike if round_.name in known}
        for round_ in alike:
            unbound = round_.model_copy(update={"cores": ()})  # cores are this machine's, which is not theirs
            folder = write_round(results, unbound)
            _write(folder / SCRIPT, self._script(results, round_))
        path = results / "rounds" / alike[0].name / (ARRAY if len(alike) > 1 else SCRIPT)
        if len(alike) > 1:
            _write(path, array(results, alike, self._inputs.limits))
        with undisturbed():  # a job that was taken is written down
            word = jobs.note_submitting(results, [round_.name for round_ in alike])
            job = self._scheduler.submit(str(path.relative_to(results)), results, self._environ(), word)
            given = {round_.name: f"{job}_{number}" if len(alike) > 1 else job for number, round_ in enumerate(alike)}
            jobs.note_submitted(results, given)
        return given

    def _environ(self) -> dict[str, str]:
        """Environment of `sbatch`, and with what is exported in the file that of the job."""
        limits = self._inputs.limits
        kept = allowed(self._inputs.environ, _OF_SLURM)
        ours = {name for name in kept if name.startswith("SBATCH_")} - {*_DEFAULTS}
        ours |= {name for name, key in _DEFAULTS.items() if getattr(limits, key) is not None}
        kept = {name: value for name, value in kept.items() if name not in {*ours, "TMPDIR"}}
        return kept | {"HOME": str(Path.home())}  # which the file goes through


def _write(path: Path, text: str) -> None:
    write_whole(path, text.encode())
    path.chmod(0o600)


def _await_start(ranks: RanksOfJob, folder: Path, round_: Round, watch: Watch) -> None:
    """Wait for a job's turn, however long that takes: time limits are for what runs."""
    while ranks.waiting() and not any(read_heartbeats(folder, round_.nodes, round_.world_size)):
        watch(Beat(0, "queued", 0, 0, None))
        time.sleep(poll_s(round_.world_size, _POLL_S))


@contextlib.contextmanager
def _leaving(results: Path) -> Iterator[None]:
    """Where this process is asked to stop, say which jobs go on."""
    try:
        yield
    except (KeyboardInterrupt, Interrupted):
        left = jobs.numbers(jobs.unfinished(results).values())
        if not left:
            raise
        raise LeftRunning(
            f"interrupted; SLURM goes on with job {', '.join(left)}",
            f"the same command picks up what they finish; scancel {' '.join(left)} ends them",
        ) from None


class Allocation:
    """Launcher within a job: each round is a step of it.

    Args:
        inputs: what launchers share.
        job: number of the job.
    """

    def __init__(self, inputs: Inputs, job: str) -> None:
        self._inputs, self._job, self._scheduler = inputs, job, Scheduler(inputs.environ)

    def run(self, results: Path, round_: Round, watch: Watch) -> RoundEnd:
        """Serve a round."""
        round_ = round_.model_copy(update={"cores": ()})
        ranks = RanksOfStep(self._scheduler, self._job, results / "rounds" / round_.name)
        command = self.command(results, round_)
        return attend(ranks, [command], results, round_, self._inputs.limits, watch)

    def command(self, results: Path, round_: Round) -> Command:
        """What is started for a round: a list of words, none of which a shell reads."""
        interface = LOOPBACK if round_.nodes == 1 else None
        environ = allowed(self._inputs.environ, ("SLURM_CONF",)) | self._inputs.variables()
        environ |= of_the_round(results / "rounds" / round_.name, round_, interface)
        return Command([*srun(round_), f"--jobid={self._job}", *worker(round_)], environ)


def slurm(inputs: Inputs) -> Slurm | Allocation:
    """The launcher: by jobs, or within the job that this process is part of."""
    job = inputs.environ.get("SLURM_JOB_ID")
    return Allocation(inputs, job) if job else Slurm(inputs)


def nodes(limits: LaunchSection, environ: Mapping[str, str]) -> Cluster:
    """The nodes that ranks get: of the partition that is asked for, or of the job that this process is part of.

    Raises:
        SetupError: SLURM is not there, or does not answer.
        UsageError: no such partition.
    """
    require_slurm()
    scheduler = Scheduler(environ)
    if "SLURM_JOB_ID" in environ:
        return scheduler.cluster(environ.get("SLURM_JOB_PARTITION"), environ.get("SLURM_JOB_NODELIST"))
    return scheduler.cluster(limits.partition or environ.get("SBATCH_PARTITION"))
