"""Rounds and launches as folders: numbered, described, and closed where a process could not do it itself."""

from __future__ import annotations

import datetime
import itertools
import re
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path

from vitscale.config.runspec import RunSpec
from vitscale.hardware.probe import Machine
from vitscale.hardware.topology import core_sets, sibling_groups
from vitscale.launch.outcome import RoundEnd
from vitscale.records.launches import read_launches, read_record
from vitscale.records.layers import ROOFLINE
from vitscale.records.round import Checkpointing, Entry, Round
from vitscale.records.schema import SCHEMA_VERSION, Layout, Manifest
from vitscale.records.writer import RUN, SETTLED, make_folder, write_json, write_manifest


def next_entry(
    folder: Path, run: RunSpec, checkpoints: Checkpointing | None = None, *, parity: bool = False, after: int = -1
) -> Entry:
    """The next launch of a run; `after` is the last number that is given away and may have no folder yet."""
    launch = max(_next_number(folder / "runs" / run.run_id, r"launch(\d+)"), after + 1)
    name = f"runs/{run.run_id}/launch{launch}"
    spec = run.model_dump(mode="json")
    return Entry(folder=name, run_id=run.run_id, launch=launch, spec=spec, checkpoints=checkpoints, parity=parity)


def make_round(number: int, run: RunSpec, entries: Sequence[Entry], machine: Machine) -> Round:
    """One process start for launches of `run`'s size and device, all of it on this machine."""
    cores: Sequence[tuple[int, ...]] | None = None
    if run.binds_cores and run.threads_per_rank is not None:
        allowed = machine.cores
        cores = core_sets(run.world_size, run.threads_per_rank, allowed, sibling_groups(allowed))
    return Round(
        name=f"{number:04d}-w{run.world_size}",
        world_size=run.world_size,
        nodes=run.nodes,
        ranks_per_node=run.ranks_per_node,
        device=run.device,
        cores=tuple(cores or ()),
        allocator=run.allocator,
        link=run.link,
        entries=tuple(entries),
    )


def by_process_start(runs: Sequence[RunSpec]) -> list[list[RunSpec]]:
    """Runs that one process start can serve, by rising world size."""
    key = attrgetter("process_start")
    return [list(group) for _, group in itertools.groupby(sorted(runs, key=key), key)]


def in_turn(runs: Sequence[RunSpec], turn: int) -> list[list[RunSpec]]:
    """The process starts of a turn, in which each run has one launch.

    Drift (heat, neighbours) must not read as scaling: the order of world sizes alternates.
    """
    groups = by_process_start(runs)
    ordered = groups if turn % 2 == 0 else groups[::-1]
    return [group[turn % len(group) :] + group[: turn % len(group)] for group in ordered]


def first_rounds(folder: Path, runs: Sequence[RunSpec], machine: Machine, turns: int = 1) -> list[Round]:
    """The next launches of each run, as they would be served."""
    groups = [group for turn in range(turns) for group in in_turn(runs, turn)]
    return [
        make_round(number, group[0], [next_entry(folder, run) for run in group], machine)
        for number, group in enumerate(groups, next_round(folder))
    ]


def next_round(folder: Path) -> int:
    """Number of the next round."""
    return _next_number(folder / "rounds", r"(\d+)-w\d+")


def _next_number(folder: Path, pattern: str) -> int:
    """One more than the highest number of the names that match; other names are somebody else's."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return max((int(match[1]) for name in names if (match := re.fullmatch(pattern, name))), default=-1) + 1


def close_launch(folder: Path, entry: Entry, round_name: str, end: RoundEnd) -> Manifest:
    """Write the manifest of a launch that ended without one.

    A launch that got through its steady window is `ok` whatever came after: its figures were closed by then.
    """
    path, spec = folder / entry.folder, RunSpec.model_validate(entry.spec)
    make_folder(path)
    settled = read_record(folder, path / SETTLED, Manifest, SCHEMA_VERSION)
    if settled is not None:
        return _close_settled(path, spec, settled, end)
    if not (path / RUN).exists():
        write_json(path / RUN, entry.spec)
    began = datetime.datetime.fromtimestamp((path / RUN).stat().st_mtime, datetime.UTC)
    manifest = Manifest(
        run_id=entry.run_id,
        launch=entry.launch,
        round=round_name,
        status=end.status,
        reason=end.reason,
        source="measured",
        started=began.isoformat(timespec="seconds"),
        layout=Layout(
            world_size=spec.world_size,
            nodes=spec.nodes,
            ranks_per_node=spec.ranks_per_node,
            backend=spec.torch_backend,
        ),
    )
    write_manifest(path, manifest)
    return manifest


def _close_settled(path: Path, spec: RunSpec, settled: Manifest, end: RoundEnd) -> Manifest:
    """What was looked at after the window is left out, on all ranks: some may have it and some not."""
    for unfinished in (path / ROOFLINE, *path.glob("trace.rank*")):
        unfinished.unlink(missing_ok=True)
    fields = ("overhead", "silence", "overlap", "memory", *(("trace", "roofline") if spec.measure.profile else ()))
    reason = f"the ranks ended after the steady window: {end.reason or end.status}"
    manifest = settled.model_copy(update={"notes": {**dict.fromkeys(fields, reason), **settled.notes}})
    write_manifest(path, manifest)
    return manifest


def bury(folder: Path, planned: Mapping[str, RunSpec], left: Sequence[Round] = ()) -> None:
    """Give the launches that a dead process left unfinished their status, but for those of rounds that go on."""
    alive = {entry.folder for round_ in left for entry in round_.entries}
    for launch in read_launches(folder):
        spec = launch.spec or planned.get(launch.run_id)
        name = str(launch.path.relative_to(folder))
        if launch.manifest is None and spec is not None and name not in alive:
            entry = Entry(
                folder=name,
                run_id=launch.run_id,
                launch=launch.launch,
                spec=spec.model_dump(mode="json"),
            )
            end = RoundEnd("killed", "its process ended before the launch was finished")
            close_launch(folder, entry, "unknown", end)
