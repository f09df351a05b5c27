"""New lines of a launch's records as points, read from where the last reading ended.

A line counts once its newline is there. A line that is no JSON object is passed over here: the report names it, and a
chart with a gap is worth more than no chart.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vitscale.config.runspec import RunSpec
from vitscale.records.writer import node_steps_name, steps_name
from vitscale.trackers.positions import Place, Progress
from vitscale.trackers.protocol import Point

EVALUATIONS = "eval.jsonl"

CHUNK_BYTES = 1 << 20
"""Read at once: some 4,000 lines. What is held in memory stays small however long nobody looked."""

_NOT_VALUES = ("step", "window", "rank", "images")


class Batch(NamedTuple):
    """What one reading found."""

    points: list[Point]
    """By rising step, an evaluation after its step."""
    progress: Progress
    """Where the next reading goes on."""


def read_batch(folder: Path, spec: RunSpec, began_s: float, progress: Progress) -> Batch:
    """Points of whole lines that are new since `progress`: rank 0's steps, and the evaluations.

    Args:
        folder: launch folder.
        spec: its run.
        began_s: start of the launch, seconds since the epoch.
        progress: where to go on; not changed.
    """
    elapsed_s = progress.elapsed_s
    points: list[Point] = []
    lines, steps = _new_lines(_steps_path(folder), progress.steps)
    for line in lines:
        if line.get("rank") == 0 and type(line.get("step")) is int and line["step"] > steps.last_step:
            steps = Place(offset=steps.offset, last_step=line["step"])
            values = _train_values(line, spec)
            elapsed_s += values.get("train/step_s", 0.0)
            points.append(Point(line["step"], began_s + elapsed_s, values))
    lines, evaluations = _new_lines(folder / EVALUATIONS, progress.evaluations)
    for line in lines:
        values = _eval_values(line)
        if values and type(line.get("step")) is int and line["step"] > evaluations.last_step:
            evaluations = Place(offset=evaluations.offset, last_step=line["step"])
            points.append(Point(line["step"], _time_of(line["step"], points, began_s + progress.elapsed_s), values))
    update = {"elapsed_s": elapsed_s, "steps": steps, "evaluations": evaluations}
    return Batch(sorted(points, key=lambda point: point.step), progress.model_copy(update=update))


def _steps_path(folder: Path) -> Path:
    """Rank 0's lines: in its own file, or in that of its node."""
    own = folder / steps_name(0)
    return own if own.exists() else folder / node_steps_name(0)


def _new_lines(path: Path, place: Place) -> tuple[list[dict[str, Any]], Place]:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            # Shorter than it was: cut back to a checkpoint. The steps that come again are known by their number.
            offset = place.offset if place.offset <= size else 0
            file.seek(offset)
            data = file.read(CHUNK_BYTES)
    except FileNotFoundError:
        return [], place
    whole = data[: data.rfind(b"\n") + 1]
    found = [line for line in map(_parsed, whole.splitlines()) if line is not None]
    return found, Place(offset=offset + len(whole), last_step=place.last_step)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _train_values(line: Mapping[str, Any], spec: RunSpec) -> dict[str, float]:
    values = {f"train/{name}": value for name, value in _numbers(line).items()}
    step_s = values.get("train/step_s", 0.0)
    if step_s > 0:
        values["train/images_per_s"] = spec.global_batch / step_s
    values["train/epoch"] = (line["step"] + 1) * spec.global_batch / spec.data.images
    return values


def _eval_values(line: Mapping[str, Any]) -> dict[str, float]:
    return {f"eval/{name.removeprefix('test_')}": value for name, value in _numbers(line).items()}


def _numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """Every measured field by its name, those that a later schema adds too; `null` is not measured, and left out."""
    return {
        name: float(value)
        for name, value in line.items()
        if name not in _NOT_VALUES and type(value) in (int, float) and math.isfinite(value)
    }


def _time_of(step: int, points: list[Point], otherwise_s: float) -> float:
    return max((point.time_s for point in points if point.step <= step), default=otherwise_s)
