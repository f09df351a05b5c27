"""Predictions that stand in a results folder, as the report draws them beside what was measured."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

FOLDER = "predictions"


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Spread(_Read):
    """Median with its 80 and 95 % intervals."""

    median: float
    low80: float
    high80: float
    low95: float
    high95: float


class PredictedPoint(_Read):
    """One world size."""

    world_size: int
    nodes: int
    step_s: Spread
    images_per_s: Spread | None
    """None where the micro-batch is not told."""
    efficiency: Spread
    energy_per_image_j: Spread | None = None
    energy_is_bound: bool = False
    """Whether energy is what it is at most."""
    cost_per_million_images: Spread | None = None
    """In the currency of the price."""
    training_s: Spread | None = None
    """All epochs, with checkpoints and failures."""
    memory_needed_bytes: Spread | None = None
    fit_probability: float | None = None
    limit: str


class Predicted(_Read):
    """One series in its own configuration."""

    series: str
    baseline: int
    asked: dict[str, str | int] = {}
    """What differs from the series; such a prediction is not drawn beside it."""
    points: tuple[PredictedPoint, ...]
    assumptions: tuple[str, ...] = ()


def predictions(folder: Path) -> tuple[Predicted, ...]:
    """Predictions of `vitscale predict`; a file that is none is passed over, since the next call writes it anew."""
    found = []
    for path in sorted((folder / FOLDER).glob("*.json")):
        try:
            one = Predicted.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            continue
        if not one.asked and one.points:
            found.append(one)
    return tuple(found)
