"""`calibration.json`: fitted parameters as data. `predict` writes it, `simulate` reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vitscale.errors import ResultsError

NAME = "calibration.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class FittedParameter(_Frozen):
    """One parameter: a median with its 95 % interval."""

    median: float
    low95: float
    high95: float


class FittedSeries(_Frozen):
    """One series. Mechanisms are ratios to the reference micro-step, as `cost.scaling` derives them."""

    device: str | None
    model: str | None
    protocol: str | None
    engine: str | None
    zero_stage: int | None
    precision: str | None
    reference_micro_batch: float = Field(gt=0)
    """Images of the reference micro-step."""
    micro_step_s: FittedParameter
    """Forward and backward of the reference micro-step, seconds."""
    parameters: dict[str, FittedParameter]
    """`fixed_share`, `update`, `intra_node`, `inter_node`, `hop`, `contention`, `exposed_floor`, `jitter` (see
    `cost.scaling.Mechanisms`), and `noise` and `drift`: launch-to-launch noise, and what the mechanisms miss per root
    of a doubling of the world size, both as standard deviations of the logarithm of the step."""
    measured: tuple[tuple[int, int, float, int, float | None], ...]
    """Of each run: world size, nodes, micro-batch, accumulation, step in seconds (null: not measured)."""
    effective_draws: float
    """Draws of the fit that carried weight."""
    assumptions: tuple[str, ...]


class CalibrationFile(_Frozen):
    """The file."""

    schema_version: Literal[1] = 1
    series: dict[str, FittedSeries]


def read_calibration(path: Path) -> CalibrationFile:
    """Read the file, or that of a results folder.

    Raises:
        ResultsError: it is not there, or is no calibration.
    """
    file = path / NAME if path.is_dir() else path
    try:
        return CalibrationFile.model_validate_json(file.read_bytes())
    except OSError as error:
        raise ResultsError(f"cannot read `{file}`: {error.strerror}", "`vitscale predict RESULTS` writes it") from None
    except ValidationError as error:
        raise ResultsError(f"`{file}` is no calibration: {error.errors()[0]['msg']}") from None
