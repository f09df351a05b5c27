"""Series from a table or from a results folder; what cannot be meant is refused, what is merely odd is said."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median, stdev
from typing import TYPE_CHECKING, Any

from vitscale.config.imported import ImportedSpec
from vitscale.cost.calibrated import knobs_of
from vitscale.cost.scaling import Layout
from vitscale.errors import UsageError
from vitscale.predict import from_table
from vitscale.predict.checks import checked
from vitscale.predict.from_table import Makers, one_of
from vitscale.predict.result import MATERIAL
from vitscale.predict.series import SIZES, LinkRates, Observation, Series
from vitscale.units import ranks

if TYPE_CHECKING:
    from vitscale.analysis.load import Run, StudyData


@dataclass(frozen=True)
class Refused:
    """A series that nothing can be predicted from."""

    name: str
    message: str
    hint: str | None


def read(path: Path) -> list[Series]:
    """The series of a results folder that have runs to predict from, or of a table.

    Raises:
        UsageError: nothing is there, or a row or a series that cannot be meant.
        ResultsError: the folder is no results folder, or is damaged.
    """
    if not path.is_dir():
        return of_table(path)
    makers, _ = _of_results(path)
    if not makers:
        raise UsageError(f"`{path}` has no run that can be predicted from", "`vitscale report` says why")
    return _all(makers)


def of_table(path: Path) -> list[Series]:
    """The series of a table in the format of `vitscale import table`, in the table's order.

    Raises:
        UsageError: the table has no rows, or one that cannot be meant, or a series that mixes what must not be mixed.
    """
    return _all(from_table.makers(path))


def read_each(path: Path) -> tuple[list[Series], list[Refused]]:
    """Those that can be predicted from, and of each other one why not.

    Raises:
        UsageError: nothing is there, or a row that cannot be read.
        ResultsError: the folder is no results folder, or is damaged.
    """
    series: list[Series] = []
    makers, refused = _of_results(path) if path.is_dir() else (from_table.makers(path), [])
    for name, make in makers.items():
        try:
            series.append(make())
        except UsageError as error:
            refused.append(Refused(name, error.message, error.hint))
    return series, refused


def _all(makers: Makers) -> list[Series]:
    return [make() for make in makers.values()]


def _of_results(folder: Path) -> tuple[Makers, list[Refused]]:
    """Series with runs to predict from, and those without."""
    from vitscale.analysis.load import load
    from vitscale.analysis.scaling import named_baseline, run_problems

    study = load(folder)
    named = named_baseline(study.results.resolved)
    used = {
        name: [run for run in runs if not run_problems(run) and run.step_s] for name, runs in study.by_series.items()
    }
    apart = any(_input_share(_seen(run)) >= MATERIAL for runs in used.values() for run in runs if run.facts.micro_batch)
    makers: dict[str, Callable[[], Series]] = {}
    refused = []
    for name, runs in study.by_series.items():
        problems = [
            f"{ranks(run.facts.world_size)} left out: {found[0]}" for run in runs if (found := run_problems(run))
        ]
        if sound := used[name]:
            makers[name] = partial(_series, study, name, sound, problems, named, apart)
        else:
            why = problems[0] if problems else "no step time is told"
            refused.append(
                Refused(name, f"series `{name}` has no run to predict from: {why}", "measure one: `vitscale run`")
            )
    return makers, refused


def _series(
    study: StudyData, name: str, sound: Sequence[Run], left_out: Sequence[str], named: int | None, apart: bool
) -> Series:
    from vitscale.analysis import costs
    from vitscale.analysis.scaling import baseline

    base = baseline(sound, named)
    none = f"no valid run has the {named} ranks of `measure.baseline`: the smallest is compared with"
    told = _measured(name, sound, [*left_out, *([none] if base is None else [])], apart)
    refers = None if base is None else _layout_of(base)
    price_per_s = costs.price_per_s(study.results.resolved)
    price = None if price_per_s is None else 3600 * price_per_s
    epochs = (study.results.resolved.get("train") or {}).get("epochs")
    links = _links(study, study.by_series[name])
    return checked(replace(told, links=links, baseline=refers, price_per_hour=price, epochs=epochs))


def _links(study: StudyData, runs: Sequence[Run]) -> LinkRates:
    """Rates by the link benchmark of the series' rounds, or as the launcher `lab` shaped them."""
    from vitscale.analysis.collectives import idle_links

    rates: dict[bool, float] = {}
    for run in runs:
        if not isinstance(run.spec, ImportedSpec) and run.spec.link_bytes_per_s is not None:
            rates.setdefault(True, run.spec.link_bytes_per_s)
        timed = idle_links(study, run)
        reduced = [one for one in timed.timings if one.operation == "all_reduce"] if timed else []
        if timed is not None and reduced:
            rates[timed.nodes > 1] = max(reduced, key=lambda one: one.bytes).bus_bytes_per_s
    return LinkRates(rates.get(False), rates.get(True))


def _measured(name: str, runs: Sequence[Run], left_out: list[str], apart: bool) -> Series:
    remarks = [*left_out] + ([] if runs[0].source == "measured" else [f"times are {runs[0].source}, not measured here"])

    def same(get: Callable[[Run], Any], field: str) -> Any:
        return one_of(name, field, [get(run) for run in runs], remarks)

    first = runs[0].facts
    spec, configured = runs[0].spec, dict[str, Any]()
    if not isinstance(spec, ImportedSpec):
        configured = {key: spec.model.sizes.get(key) for key in SIZES}
        configured["knobs"] = knobs_of(spec)
    names = [next(iter(run.device_names), None) for run in runs]
    several = {device for run in runs for device in run.device_names}
    if len(several) > 1:
        raise UsageError(f"series `{name}` mixes devices: {', '.join(sorted(several))}", "measure them as two studies")
    observations = [_seen(run) for run in runs if run.facts.micro_batch is not None]
    if not apart or not _input_told(observations):
        observations = [replace(one, input_s=None) for one in observations]
    return Series(
        name,
        tuple(sorted(observations, key=lambda one: (one.layout.world_size, one.layout.nodes))),
        protocol=first.protocol,
        model=first.model,
        device="cpu" if first.device_kind == "cpu" else one_of(name, "device", names, remarks),
        engine=same(lambda run: run.facts.engine, "engine"),
        zero_stage=same(lambda run: run.facts.zero_stage, "ZeRO stage"),
        precision=same(lambda run: run.facts.precision, "precision"),
        optimizer=same(lambda run: run.facts.optimizer, "optimizer"),
        images_per_epoch=first.images_per_epoch,
        source=runs[0].source,
        remarks=tuple(remarks),
        **configured,
    )


def _seen(run: Run) -> Observation:
    figures = run.figures
    step_s = median(run.step_s)

    def part(*names: str) -> float | None:
        shares = [[one.parts.get(name) for name in names] for one in figures]
        if not shares or any(value is None for row in shares for value in row):
            return None
        return step_s * sum(value for row in shares for value in row if value is not None) / len(shares)

    logs = [math.log(value) for value in run.step_s]
    peaks = run.memory_peaks_bytes
    powers = [one.devices.power_w for one in run.counted if one.devices and one.devices.power_w]
    return Observation(
        _layout_of(run),
        step_s,
        launches=len(logs),
        spread=stdev(logs) / math.sqrt(len(logs)) if len(logs) > 2 else None,
        compute_s=part("forward", "backward"),
        comm_s=part("comm_exposed", "wait") or part("comm_and_wait"),
        memory_bytes=int(max(peaks)) if peaks else None,
        power_w=median(powers) if powers else None,
        images_per_epoch=run.facts.images_per_epoch,
        input_s=part("data"),
    )


def _input_told(found: Sequence[Observation]) -> bool:
    """Whether what images took is told of all runs of a series, and leaves some of each step."""
    return all(one.input_s is not None and _input_share(one) < 1 for one in found)


def _input_share(one: Observation) -> float:
    return one.input_s / one.step_s if one.input_s is not None and one.step_s else 0.0


def _layout_of(run: Run) -> Layout:
    told = run.facts
    accum = told.grad_accum or 1
    micro = (told.global_batch or 0) / told.world_size / accum or told.micro_batch or 1
    return Layout(told.world_size, told.nodes or 1, micro, accum)
