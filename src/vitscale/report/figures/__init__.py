"""Figures: one Vega-Lite description each, drawn interactively by the page and as SVG and PNG by vl-convert."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import altair as alt
import vl_convert

from vitscale.analysis.result import StudyResult
from vitscale.report.escape import cleaned
from vitscale.report.figures import (
    accumulation_map,
    curves,
    devices,
    memory,
    prediction,
    scaling,
    split,
    sweeps,
    waterfall,
)
from vitscale.report.figures.look import finished
from vitscale.report.rows import ChartData
from vitscale.report.rows.accumulation_map import map_data
from vitscale.report.rows.curves import loss_data, test_data
from vitscale.report.rows.devices import cost_data, sensor_data
from vitscale.report.rows.memory import memory_data
from vitscale.report.rows.prediction import prediction_data
from vitscale.report.rows.scaling import scaling_data
from vitscale.report.rows.split import split_data
from vitscale.report.rows.sweeps import ACCUMULATION, ACCURACY, BATCH, RESOLUTION, efficiency_data, sweep_data
from vitscale.report.rows.waterfall import waterfall_data

VEGA_LITE = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
"""Vega-Lite's version that the descriptions are written in, as vl-convert names it."""


@dataclass(frozen=True)
class Drawing:
    """One figure, drawn."""

    name: str
    """Stem of its files."""
    spec: dict[str, Any]
    """Vega-Lite."""
    svg: str
    notes: tuple[str, ...]
    """What is not drawn, or drawn differently."""

    @property
    def svg_file(self) -> bytes:
        """The SVG by itself, on white."""
        head, body = self.svg.split(">", 1)
        return f'{head}><rect width="100%" height="100%" fill="#ffffff"/>{body}'.encode()

    def png_file(self) -> bytes:
        """The same as pixels, twice as many as points."""
        png: bytes = vl_convert.svg_to_png(self.svg_file.decode(), scale=2)
        return png


def draw(result: StudyResult) -> list[Drawing]:
    """Every figure for which there is something to draw, in the order they are shown."""
    drawings = []
    for name, figure in _FIGURES.items():
        data = cleaned(figure.data(result))
        if data.rows:
            spec = finished(figure.chart(data), data, figure.independent)
            drawings.append(Drawing(name, spec, _svg(spec, name), data.notes))
    return drawings


@dataclass(frozen=True)
class _Figure:
    data: Callable[[StudyResult], ChartData]
    chart: Callable[[ChartData], alt.LayerChart]
    independent: tuple[str, ...] = ()
    """Axes of which each panel has its own."""


_FIGURES: dict[str, _Figure] = {
    "waterfall": _Figure(waterfall_data, waterfall.waterfall),
    "throughput": _Figure(lambda result: scaling_data(result, "images_per_s"), scaling.throughput),
    "speedup": _Figure(lambda result: scaling_data(result, "speedup"), scaling.speedup),
    "efficiency": _Figure(lambda result: scaling_data(result, "efficiency"), scaling.efficiency),
    "prediction": _Figure(prediction_data, prediction.prediction),
    "split": _Figure(split_data, split.split),
    "memory": _Figure(memory_data, memory.memory),
    "accuracy": _Figure(lambda result: test_data(result, "test_accuracy"), curves.accuracy, ("x",)),
    "test_loss": _Figure(lambda result: test_data(result, "test_loss"), curves.test_loss, ("x",)),
    "efficiency_split": _Figure(efficiency_data, sweeps.efficiency_split),
    "batch": _Figure(lambda result: sweep_data(result, BATCH), sweeps.sweep("micro_batch"), ("y",)),
    "resolution": _Figure(lambda result: sweep_data(result, RESOLUTION), sweeps.sweep("model.img_size"), ("y",)),
    "accumulation": _Figure(lambda result: sweep_data(result, ACCUMULATION), sweeps.sweep("grad_accum"), ("y",)),
    "accumulation_map": _Figure(map_data, accumulation_map.accumulation_map),
    "accuracy_batch": _Figure(lambda result: sweep_data(result, ACCURACY), sweeps.sweep("global_batch"), ("y",)),
    "costs": _Figure(cost_data, sweeps.costs, ("y",)),
    "sensors": _Figure(sensor_data, devices.sensors, ("y",)),
    "loss": _Figure(loss_data, curves.loss),
}
NAMES = tuple(_FIGURES)
"""Stems of every figure's files."""


def _svg(spec: dict[str, Any], name: str) -> str:
    svg: str = vl_convert.vegalite_to_svg(json.dumps(spec), vl_version=VEGA_LITE)
    # Several SVGs stand in one page: ids must differ.
    return svg.replace('id="', f'id="{name}-').replace("url(#", f"url(#{name}-")
