"""`vitscale doctor`: one process start of a study's largest world, which looks at machines and links."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vitscale.config.runspec import RunSpec
from vitscale.errors import HangError, Interrupted, MemoryExceeded, SetupError, VitscaleError, WorkerError
from vitscale.hardware.position import Position
from vitscale.hardware.probe import Machine
from vitscale.launch.outcome import Launcher, RoundEnd
from vitscale.records.examination import DOCTOR, DoctorReport, read_examination, read_hosts
from vitscale.records.writer import write_json
from vitscale.study.checks import Case, of_hosts
from vitscale.study.link_checks import of_ranks
from vitscale.study.rounds import make_round, next_entry, next_round
from vitscale.study.where import Where

NAME = "doctor"
"""Of the results folder where no study is given."""


def world_of(launcher: str, where: Where, place: Position | None, words: Sequence[str] = ()) -> list[str]:
    """The world that is looked at where no study says one, as overrides of `quick`: of several hosts a rank on each.

    Args:
        launcher: name of the launcher.
        where: what it starts ranks on.
        place: of this process among those of a starter, of the launcher `env`.
        words: overrides that are given, before which these give way.
    """
    given = {word.partition("=")[0].removeprefix("axes.") for word in words}
    if given & {"world_size", "nodes", "ranks_per_node"}:
        return []
    world = _world(launcher, where, place)
    return [f"{key}={value}" for key, value in world.items() if key not in given]


def _world(launcher: str, where: Where, place: Position | None) -> dict[str, int | str]:
    if place is not None:
        return {"world_size": place.world_size, "ranks_per_node": place.local_world_size}
    if launcher == "lab":
        return {"world_size": 2, "nodes": 2}
    if (hosts := len(where.hosts)) > 1:
        # A batch that any number of ranks can have.
        return {"world_size": hosts, "nodes": hosts, "protocol": "weak", "micro_batch": 1}
    return {"world_size": len(where.machine.gpus) or min(len(where.machine.cores), 2)}


def largest_world(runs: Sequence[RunSpec]) -> list[RunSpec]:
    """The runs of the largest world that one process start serves."""
    largest = max(runs, key=lambda run: (run.world_size, run.nodes))
    return [run for run in runs if run.process_start == largest.process_start]


def examine(
    folder: Path, name: str, runs: Sequence[RunSpec], machine: Machine, launcher: Launcher, starter: str
) -> tuple[DoctorReport, VitscaleError | None]:
    """Start the ranks of `largest_world(runs)`, judge what they found, and write `doctor.json` into a locked folder.

    Returns:
        What was found, and the error that the command ends with, or None where no check failed.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the ranks are ended, and so is a scheduler's job.
    """
    chosen = largest_world(runs)
    run = chosen[0]
    round_ = make_round(next_round(folder), run, [next_entry(folder, one) for one in chosen], machine)
    # Not bound to cores: a rank tells how many there are.
    round_ = round_.model_copy(update={"examine": True, "cores": ()})
    try:
        end = launcher.run(folder, round_, lambda _: None)
    except SetupError as error:  # hosts that do not answer are what is found
        end = RoundEnd("failed", error.message, "setup", hint=error.hint)
    except (KeyboardInterrupt, Interrupted):
        raise Interrupted("interrupted", "the same command looks again") from None
    own = folder / "rounds" / round_.name
    case = Case(chosen, read_hosts(own, run.nodes), read_examination(own), end)
    checks = (*of_hosts(case), *of_ranks(case))
    failed = [one for one in checks if one.status == "failed"]
    report = DoctorReport(
        study=name,
        launcher=starter,
        round=round_.name,
        world_size=run.world_size,
        nodes=run.nodes,
        ranks_per_node=run.ranks_per_node,
        device=run.device,
        model=run.model.name,
        healthy=not failed,
        checks=checks,
        hosts=case.hosts,
        together=case.together,
    )
    write_json(folder / DOCTOR, report.model_dump(mode="json"))
    return report, _error(case, len(failed), len(checks))


def _error(case: Case, failed: int, checks: int) -> VitscaleError | None:
    if not failed:
        return None
    kind = {"timeout": HangError, "oom": MemoryExceeded, "failed": WorkerError}.get(case.end.status, SetupError)
    if case.end.kind == "setup" or failed > (case.together is None):
        kind = SetupError  # a check of its own says what is wrong
    return kind(f"{failed} of {checks} checks failed", "what to type stands beside each of them")
