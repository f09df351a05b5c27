"""Predictions and calibrations as JSON, and where they are written."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vitscale.cost.calibrated import NAME, CalibrationFile, FittedParameter, FittedSeries, read_calibration
from vitscale.predict.model import Calibration, Memory, Prediction
from vitscale.predict.result import MEMORY
from vitscale.records.writer import make_folder, write_json

FOLDER = "predictions"


def prediction_document(prediction: Prediction) -> dict[str, Any]:
    """One prediction: what `predict --json` prints and `predictions/<series>.json` holds."""
    return {
        "schema_version": 1,
        "series": prediction.series,
        "method": prediction.method,
        "asked": prediction.asked,
        "baseline": prediction.baseline,
        "knee": prediction.knee,
        "pays": prediction.pays,
        "reasons": prediction.reasons,
        "assumptions": list(prediction.assumptions),
        "points": [
            {
                "world_size": one.layout.world_size,
                "nodes": one.layout.nodes,
                "micro_batch": one.layout.micro_batch,
                "grad_accum": one.layout.grad_accum,
                "step_s": asdict(one.step_s),
                "images_per_s": None if one.images_per_s is None else asdict(one.images_per_s),
                "speedup": asdict(one.speedup),
                "efficiency": asdict(one.efficiency),
                **_memory(one.memory),
                **asdict(one.spending),
                "limit": one.losses.limit,
                "losses": asdict(one.losses),
                "assumptions": list(one.assumptions),
            }
            for one in prediction.points
        ],
    }


def _memory(one: Memory | None) -> dict[str, Any]:
    if one is None:
        return dict.fromkeys(MEMORY)
    values = (one.tensors_bytes, asdict(one.needed_bytes), one.limit_bytes, one.fit_probability)
    return dict(zip(MEMORY, values, strict=True))


def calibration_file(calibrations: Sequence[Calibration]) -> CalibrationFile:
    """All series of a results folder."""
    return CalibrationFile(series={one.series.name: _fitted(one) for one in calibrations})


def _fitted(one: Calibration) -> FittedSeries:
    def fitted(parameter: Any) -> FittedParameter:
        return FittedParameter(**asdict(parameter))

    series = one.series
    return FittedSeries(
        device=series.device,
        model=series.model,
        sizes=series.sizes,
        optimizer=series.optimizer,
        knobs=dict(series.knobs),
        protocol=series.protocol,
        engine=series.engine,
        zero_stage=series.zero_stage,
        precision=series.precision,
        reference_micro_batch=one.reference_micro_batch,
        micro_step_s=fitted(one.micro_step_s),
        parameters={name: fitted(parameter) for name, parameter in one.parameters.items()},
        measured=tuple(
            (at.world_size, at.nodes, at.micro_batch, at.grad_accum, seen.step_s)
            for seen in series.observations
            for at in (seen.layout,)
        ),
        readings=series.input.readings,
        effective_draws=one.posterior.effective,
        assumptions=one.assumptions,
    )


def write(
    folder: Path, calibrations: Sequence[Calibration], predictions: Sequence[Prediction], *, beside: bool = False
) -> None:
    """Write `calibration.json` and `predictions/<series>.json` into a results folder, each whole or not at all.

    Args:
        folder: a results folder.
        calibrations: their series take the place of those of the same name.
        predictions: one file each.
        beside: whether other series of the calibration that is there stay.

    Raises:
        ResultsError: a file cannot be written, or the calibration beside which to write cannot be read.
    """
    file = calibration_file(calibrations)
    if beside and (folder / NAME).exists():
        file = CalibrationFile(series={**read_calibration(folder).series, **file.series})
    write_json(folder / NAME, file.model_dump(mode="json"))
    make_folder(folder / FOLDER)
    for one in predictions:
        write_json(folder / FOLDER / f"{file_stem(one.series, one.asked)}.json", prediction_document(one))


def remove(folder: Path, series: str) -> None:
    """Take away what was predicted of a series in its own configuration."""
    (folder / FOLDER / f"{file_stem(series, {})}.json").unlink(missing_ok=True)


def file_stem(series: str, asked: Mapping[str, str | int]) -> str:
    """A series' name as a file's, with what was asked beyond it."""
    words = [series, *(f"{key}-{value}" for key, value in asked.items())]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "+".join(words).replace("+", "--")).strip("-.")[:160] or "series"
