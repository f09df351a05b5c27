"""Reading `eval.jsonl`: what a launch scored on the test set, and when."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from vitscale.errors import ResultsError
from vitscale.records.steps import parse_lines

EVALUATIONS = "eval.jsonl"


class Scored(NamedTuple):
    """One evaluation. Our own launches tell every field (`records.checkpoint.Evaluation`), an imported log some."""

    step: float | None
    """Optimizer steps taken before it."""
    epoch: float | None
    """Passes over the training images before it."""
    images: float | None
    """Training images seen before it."""
    seconds: float | None
    """Training time before it, without evaluations and checkpoints."""
    test_loss: float | None
    """Mean cross-entropy."""
    test_accuracy: float | None
    """Fraction of test images classified rightly."""


def read_evaluations(root: Path, path: Path) -> tuple[Scored, ...]:
    """Every evaluation of a launch in order; none where there is no such file. A torn last line is left out.

    Raises:
        ResultsError: a field is no number, or an accuracy no fraction; named as `file:line` relative to `root`.
    """
    if not path.is_file():
        return ()
    where = str(path.relative_to(root))
    return tuple(_scored(where, number, line) for number, line in parse_lines(path.read_bytes(), where))


def _scored(where: str, number: int, line: dict[str, Any]) -> Scored:
    values = {name: line.get(name) for name in Scored._fields}
    for name, value in values.items():
        sound = value is None or (type(value) in (int, float) and math.isfinite(value) and value >= 0)
        if not sound or (name == "test_accuracy" and value is not None and value > 1):
            raise ResultsError(f"`{where}:{number}` is damaged: `{name}` is {value!r}")
    return Scored(**values)
