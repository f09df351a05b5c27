"""What a launch costs before its first step, by its parts and from the manifests. No step holds any of it."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

from vitscale.analysis.interval import Frozen
from vitscale.records.schema import Manifest, Times


class StartUp(Frozen):
    """From the start of the processes to the first step, seconds: medians over the launches that tell all of it.

    What a round does once (`import_s`, `group_s`, `timing_s`) is every launch's of the round.
    """

    total_s: float
    """All of it."""
    import_s: float
    """Until the slowest rank has loaded its libraries."""
    group_s: float
    """From there until all ranks have met in the process group."""
    timing_s: float
    """Links and matrix products are timed."""
    setup_s: float
    """Model, optimizer and engine."""
    data_s: float
    """From there to the first step: images are opened and the first batches read."""


def start_ups(manifests: Iterable[Manifest]) -> dict[str, StartUp]:
    """run_id -> start-up of its launches with status `ok`; runs without one that tells it are left out."""
    finished = [one for one in manifests if one.status == "ok"]
    first = {one.round: one.times for one in finished if one.times.process_start_s is not None}
    parts: dict[str, list[tuple[float, ...]]] = {}
    for one in finished:
        if told := _parts(first.get(one.round, Times()), one.times):
            parts.setdefault(one.run_id, []).append(told)
    return {run_id: _medians(launches) for run_id, launches in parts.items()}


def _parts(of_round: Times, own: Times) -> tuple[float, ...] | None:
    """In the order of `StartUp`'s fields, without the total."""
    if of_round.process_start_s is None or of_round.import_s is None:
        return None
    told = (of_round.import_s, of_round.process_start_s - of_round.import_s, of_round.timing_s, own.setup_s, own.data_s)
    known = tuple(part for part in told if part is not None)
    return known if len(known) == len(told) else None


def _medians(launches: list[tuple[float, ...]]) -> StartUp:
    columns = [[sum(parts) for parts in launches], *zip(*launches, strict=True)]
    return StartUp(**dict(zip(StartUp.model_fields, map(median, columns), strict=True)))
