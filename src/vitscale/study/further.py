"""The command that measures one more run of a results folder: its own study as it was run, with what is to be added.

A command is planned before it is told. It is one to paste only if its plan has that run, in the series it is for where
that can be: ranks on a CPU have the threads that the largest world leaves them, and `weak` deals out the data set among
the most ranks, so that a larger world can make another series of all its runs. Then that is said.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vitscale.config.load import Loaded, load, shipped
from vitscale.config.runspec import RunSpec
from vitscale.config.study import DataSection
from vitscale.config.words import leaves, words
from vitscale.cost.scaling import Layout
from vitscale.errors import UsageError, VitscaleError
from vitscale.records.launches import read_document, read_launches
from vitscale.records.round import Round
from vitscale.study.grid import Grid, Images, build
from vitscale.study.results import RESOLVED, STUDY
from vitscale.study.where import Where

_AXES = ("engine", "zero_stage", "precision")
_PLACED = {"world_size", "nodes", "ranks_per_node", "data_parallel", "oversubscribed", "threads_per_rank"}
_BATCH = {"micro_batch", "grad_accum", "global_batch", "solved"}
_OF_ENGINE = {"fsdp", "knobs", "deepspeed"}
_FOLLOWING = {"threads_per_rank": ("threads_per_rank",), "images_per_device": ("data", "images_per_device")}
_NOT_THERE = "the study has no such run here"


class Further(NamedTuple):
    """How one more run is measured."""

    command: str | None
    """To paste; with a `reason` it is for another machine."""
    launches: int = 0
    """That it would measure, over all runs of its plan."""
    others: int = 0
    """Of these, of runs laid out otherwise."""
    remark: str | None = None
    """What becomes of the runs that are there, where they do not stay."""
    reason: str | None = None
    """Why it cannot be measured here."""

    @property
    def stays(self) -> bool:
        """Whether it measures this run and no other."""
        return self.reason is None and self.remark is None and self.others == 0


@dataclass(frozen=True)
class Held:
    """A results folder as the study that was run into it."""

    folder: Path
    study: str
    """File or shipped name."""
    base: Mapping[str, Any]
    """`leaves` of it, without overrides."""
    resolved: Mapping[str, Any]
    """`leaves` of what was run last."""
    launcher: str | None
    """Name; None where it was a starter outside, such as torchrun."""
    runs: Mapping[str, RunSpec]
    ok: Counter[str]
    """Launches that count, by run_id."""

    def words(self, changes: Mapping[str, Any] | None = None) -> list[str]:
        """Overrides of the file: those it was run with, and `changes` by dotted path."""
        return words(self.base, {**self.resolved, **(changes or {})}, changes or ())

    def command(self, changes: Mapping[str, Any]) -> str:
        """What is typed."""
        told = ["vitscale", "run", self.study, *self.words(changes), "--out", str(self.folder)]
        return shlex.join([*told, "--launcher", self.launcher] if self.launcher not in (None, "local") else told)


def held(folder: Path) -> Held:
    """Read which study a results folder is of.

    Raises:
        UsageError: it holds no study that can be run, as after an import.
        ResultsError: its documents cannot be read.
    """
    document = read_document(folder, folder / RESOLVED, 1) or {}
    if "axes" not in document or not (folder / STUDY).is_file():
        raise UsageError(f"`{folder}` does not hold the study it was measured with")
    name = str(document.get("name"))
    text = (folder / STUDY).read_text(encoding="utf-8")
    study = name if name in shipped() and load(name).text == text else str(folder / STUDY)
    launches = read_launches(folder)
    runs = {one.run_id: one.spec for one in launches if one.spec is not None}
    return Held(
        folder,
        study,
        leaves(load(study).study.model_dump(mode="json")),
        {path: _at_home(value) for path, value in leaves(document).items()},
        _launcher(folder, runs, document),
        runs,
        Counter(one.run_id for one in launches if one.ok),
    )


def _at_home(value: Any) -> Any:
    """Results have `~` for the home folder, which no shell expands within a word."""
    return str(Path(value).expanduser()) if isinstance(value, str) and value.startswith("~/") else value


def _launcher(folder: Path, runs: Mapping[str, RunSpec], document: Mapping[str, Any]) -> str | None:
    if any(run.simulated_device for run in runs.values()):
        return "simulate"
    if (folder / "jobs.jsonl").exists():
        return "slurm"
    if any(Round.read(path).one_machine for path in sorted(folder.glob("rounds/*/round.json"))):
        return "lab"
    if (document.get("launch") or {}).get("hostfile"):
        return None  # `hosts` and `mpi` both read it
    return None if any(run.nodes > 1 for run in runs.values()) else "local"


def further(
    at: Held,
    where: Where | VitscaleError,
    images_of: Callable[[DataSection], Images],
    series: str,
    layout: Layout,
    asked: Mapping[str, str | int],
) -> Further:
    """How to measure a run of a series.

    Args:
        at: the results folder.
        where: what its launcher reaches from here, or why it is not known.
        images_of: facts of a data set.
        series: as the report names it.
        layout: of the run; one that is measured is repeated.
        asked: what differs from the series: protocol, batch, engine, stage, precision; a device or a link is not here.
    """
    own = [run for run in at.runs.values() if series in (run.series, f"{run.series}-{_source(run)}")]
    if not own:
        return Further(None, reason="none of its runs is one of the folder's study")
    if missing := [key for key in ("device", "link") if key in asked]:
        return Further(None, reason=f"{asked[missing[0]]} is another machine: a study and a results folder of its own")
    like = max(own, key=lambda run: run.world_size)
    ways = _ways(at, own, like, layout, asked)
    if isinstance(where, VitscaleError) or at.launcher is None:
        reason = (
            where.message if isinstance(where, VitscaleError) else "what started these runs is not recorded: add it"
        )
        return Further(at.command(next(ways)), reason=reason)
    found: list[Further] = []
    for changes in ways:
        found.append(_tried(at, where, images_of, changes, like, layout, asked))
        if found[-1].stays:
            break
    possible = [one for one in found if one.reason is None]
    if not possible:
        return next((one for one in found if one.reason != _NOT_THERE), found[0])
    return min(possible, key=lambda one: (one.remark is not None, 0 if one.remark else one.others))


def _tried(
    at: Held,
    where: Where,
    images_of: Callable[[DataSection], Images],
    changes: Mapping[str, Any],
    like: RunSpec,
    layout: Layout,
    asked: Mapping[str, str | int],
) -> Further:
    told = at.command(changes)
    try:
        loaded = load(at.study, at.words(changes))
        return _planned(at, loaded, build(loaded.study, where, images_of), like, layout, asked, told)
    except VitscaleError as error:
        return Further(told, reason=error.message)


def _source(run: RunSpec) -> str:
    return "simulated" if run.simulated_device else "measured"


def _ways(
    at: Held, own: list[RunSpec], like: RunSpec, layout: Layout, asked: Mapping[str, str | int]
) -> Iterator[dict[str, Any]]:
    """Changes of the study that may give the run, those that leave the others as they are first."""
    sizes = {layout.world_size, *(() if asked else (run.world_size for run in own)), *at.resolved["axes.world_size"]}
    base: dict[str, Any] = {"axes.world_size": sorted(sizes)}
    if "protocol" in asked or like.protocol not in at.resolved["protocol"]:
        base["protocol"] = [asked.get("protocol", like.protocol)]
    for key in _AXES:
        value = asked.get(key, getattr(like, key))
        if value is not None and (key in asked or value not in at.resolved[f"axes.{key}"]):
            base[f"axes.{key}"] = [value]
    base |= {f"axes.{key}": [asked[key]] for key in ("micro_batch", "grad_accum", "global_batch") if key in asked}
    again = [one for one in own if _placed(one) == (layout.world_size, layout.nodes)]
    if again and not asked:
        base["measure.launches"] = max(at.ok[one.run_id] for one in again) + 1
    nodes = sorted({layout.nodes, *(at.resolved.get("axes.nodes") or (run.nodes for run in own))})
    placed = {"axes.nodes": nodes}
    alone = {"protocol": [asked.get("protocol", like.protocol)]}
    narrower = [alone] if len(at.resolved["protocol"]) > 1 else []
    for less in ({}, *narrower):
        yield base | less
        yield base | less | placed
    for less in ({}, *narrower):
        yield base | less | {"axes.world_size": [layout.world_size], "axes.nodes": [layout.nodes]}


def _placed(run: RunSpec) -> tuple[int, int]:
    return run.world_size, run.nodes


def _planned(
    at: Held,
    loaded: Loaded,
    grid: Grid,
    like: RunSpec,
    layout: Layout,
    asked: Mapping[str, str | int],
    told: str,
) -> Further:
    """The command, if its plan has the run."""
    batch = round(layout.global_batch), layout.grad_accum
    core = _core(like, asked)
    alike = [
        run
        for run in grid.runs
        if _placed(run) == (layout.world_size, layout.nodes)
        and (run.global_batch, run.grad_accum) == batch
        and _core(run, asked) == core
    ]
    if not alike:
        skipped = (one.why for one in grid.skipped if one.world_size == layout.world_size)
        return Further(told, reason=next(skipped, _NOT_THERE))
    run = alike[0]
    if run.oversubscribed:
        return Further(told, reason="more ranks than cores, which is no measurement of scaling")
    wanted = 1 if run.simulated_device else loaded.study.measure.launches
    missing = {one.run_id: max(0, wanted - at.ok[one.run_id]) for one in grid.runs}
    launches = sum(missing.values())
    if launches == 0:
        return Further(told, reason="it is there already, and the command would measure nothing")
    others = sum(missing[one.run_id] for one in grid.runs if _placed(one) != _placed(run))
    same = asked or run.series == like.series
    return Further(told, launches, others, None if same else _remark(run, like))


def _core(run: RunSpec, asked: Mapping[str, str | int]) -> dict[str, Any]:
    """What makes a run one of the series that is asked for, without what its place and its batch decide."""
    left_out = _PLACED | _BATCH | (_OF_ENGINE if "engine" in asked else set())
    tree = run.model_dump(mode="json", exclude=left_out, exclude_none=True)
    for key in ("images", "images_per_device"):
        tree["data"].pop(key, None)
    tree["optimizer"].pop("lr", None)
    tree |= {key: asked[key] for key in ("protocol", *_AXES) if key in asked}
    return tree


def _remark(run: RunSpec, like: RunSpec) -> str:
    """Why the run begins a series of its own."""

    def value(spec: RunSpec, path: tuple[str, ...]) -> Any:
        return getattr(spec if len(path) == 1 else getattr(spec, path[0]), path[-1])

    changed = [
        f"{name} {value(run, path)} instead of {value(like, path)}"
        for name, path in _FOLLOWING.items()
        if value(run, path) != value(like, path)
    ]
    return f"{', '.join(changed) or 'other settings'}: its series is measured anew"
