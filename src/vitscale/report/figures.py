"""Figures: one Vega-Lite description each, drawn interactively by the page and as SVG and PNG by vl-convert.

Text, axes and grid are `currentColor`, so that a chart has the colour of the page around it, light or dark, and black
on paper. No colour of a mark is too pale for white or too dark for black (contrast of 3 or more to both).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import vl_convert

from vitscale.analysis.result import StudyResult
from vitscale.report.chart_data import PARTS, PROTOCOLS, ChartData, loss_data, scaling_data, split_data
from vitscale.report.escape import cleaned

VEGA_LITE = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
"""Vega-Lite's version that the descriptions are written in, as vl-convert names it."""

# Okabe and Ito's colours for the colour-blind, those too pale for white darkened, and a shape and a dash each.
COLOURS = ("#2e86c1", "#d55e00", "#009e73", "#c46c9c", "#b98000", "#8c6bb1", "#5f8a24", "#3a9fd6")
GREY = "#8a8a8a"
_SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right", "triangle-left")
_DASHES = ((1, 0), (7, 3), (2, 2), (10, 3, 2, 3), (4, 4), (12, 4), (2, 5), (8, 2, 2, 2, 2, 2))
_PARTS = ("#b98000", "#2e86c1", "#3aa3c9", "#009e73", "#d55e00", "#c46c9c", "#e07b39", "#8c6bb1", "#8a8a8a")
_WIDTH = 620
_PANEL_HEIGHT = 230
_FONT = "Helvetica, Arial, 'Liberation Sans', sans-serif"
_INK = "currentColor"
_CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": _FONT,
    "padding": 4,
    # The page gives every figure a text alternative; one per mark would double the file.
    "aria": False,
    "axis": {
        "labelColor": _INK, "titleColor": _INK, "domainColor": _INK, "tickColor": _INK, "gridColor": _INK,
        "gridOpacity": 0.13, "domainOpacity": 0.45, "tickOpacity": 0.45, "labelOpacity": 0.85, "titleOpacity": 0.85,
        "labelFontSize": 11, "titleFontSize": 11.5, "titleFontWeight": "normal", "titlePadding": 7, "labelPadding": 4,
    },
    "axisX": {"grid": False},
    "axisY": {"labelLimit": 260},
    "header": {
        "title": None, "labelColor": _INK, "labelFontSize": 12.5, "labelFontWeight": "bold", "labelAnchor": "start",
        "labelPadding": 6, "labelLimit": 0,
    },
    "legend": {
        "orient": "top", "title": None, "labelColor": _INK, "labelFontSize": 11.5, "labelLimit": 420, "symbolSize": 80,
        "rowPadding": 4, "columnPadding": 18, "offset": 8, "symbolStrokeWidth": 2,
        "layout": {"top": {"anchor": "start", "bounds": "full", "margin": 8}},
    },
    "view": {"stroke": None},
    "facet": {"spacing": 28},
    "text": {"color": _INK},
}  # fmt: skip


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
    for name, (data_of, chart) in _FIGURES.items():
        data = cleaned(data_of(result))
        if data.rows:
            spec = _finished(chart(data), data)
            drawings.append(Drawing(name, spec, _svg(spec, name), data.notes))
    return drawings


def _scaling(data: ChartData, title: str, y_scale: alt.Scale, y_axis: alt.Axis, labelled: str = "") -> alt.LayerChart:
    sizes = sorted({row["world_size"] for row in data.rows if row["kind"] == "run"})
    x = alt.X(
        "world_size:Q",
        title="World size (ranks)",
        scale=alt.Scale(type="log", base=2, domain=[sizes[0] / 1.2, sizes[-1] * 1.2], nice=False),
        axis=alt.Axis(values=sizes, format="d", labelOverlap=True),
    )
    y: dict[str, Any] = {"title": title, "scale": y_scale, "axis": y_axis}
    names, colours = _key_scale(data)
    colour = alt.Color("key:N", scale=alt.Scale(domain=names, range=colours))
    shapes = [_SHAPES[index % len(_SHAPES)] for index in range(len(data.keys))] + ["circle"] * bool(data.others)
    shape = alt.Shape("key:N", scale=alt.Scale(domain=names, range=shapes))
    chosen = alt.selection_point(name="chosen", fields=["key"], bind="legend")
    fade = alt.condition(chosen, alt.value(1), alt.value(0.15))
    base = alt.Chart().transform_filter("datum.kind === 'run'").encode(x=x, color=colour, opacity=fade)
    tooltip = [
        alt.Tooltip("label:N", title="run"),
        alt.Tooltip("shown:N", title=labelled),
        alt.Tooltip("step:N", title="step"),
        alt.Tooltip("source:N", title="source"),
    ]
    point = base.encode(y=alt.Y("y:Q", **y), shape=shape, tooltip=tooltip)
    layers = [
        base.transform_filter("datum.valid").mark_line(strokeWidth=1.8).encode(y=alt.Y("y:Q", **y), detail="series:N"),
        base.transform_filter("datum.low !== null")
        .mark_rule(strokeWidth=1.6)
        .encode(y=alt.Y("low:Q", **y), y2="high:Q"),
        point.transform_filter("datum.valid").mark_point(filled=True, size=62, opacity=1).properties(name="points"),
        point.transform_filter("!datum.valid").mark_point(filled=False, size=62, strokeWidth=1.8),
    ]
    layers[2] = layers[2].add_params(chosen)
    return alt.LayerChart(layer=[*_ideal(data, x, y), *layers])


def _ideal(data: ChartData, x: alt.X, y: dict[str, Any]) -> list[alt.Chart]:
    if not any(row["kind"] == "ideal" for row in data.rows):
        return []
    base = alt.Chart().transform_filter("datum.kind === 'ideal'").encode(x=x, y=alt.Y("y:Q", **y))
    line = base.mark_line(color=_INK, opacity=0.5, strokeDash=[5, 4], strokeWidth=1.2).encode(detail="base:N")
    text = base.mark_text(align="right", baseline="bottom", dx=-8, dy=-3, opacity=0.7, fontSize=10.5)
    return [line, text.encode(text="shown:N")]


def _throughput(data: ChartData) -> alt.LayerChart:
    low, high = _range(data)
    if high / low < 6:
        scale, axis = alt.Scale(domain=[0, high * 1.06], nice=False), alt.Axis(tickCount=5)
    else:
        scale, axis = _log_scale(low, high), alt.Axis(values=_steps(low / 1.3, high * 1.3, (1, 2, 5)), format=",~r")
    return _scaling(data, "Images per second", scale, axis, "throughput")


def _speedup(data: ChartData) -> alt.LayerChart:
    low, high = _range(data)
    finest = (1, 1.5, 2, 3, 4, 5, 6, 8) if high / low < 10 else (1, 2, 4, 8)
    values = _powers(low / 1.3, high * 1.3) if high / low >= 10 else _steps(low / 1.3, high * 1.3, finest)
    return _scaling(
        data, "Speed-up over the baseline", _log_scale(low, high), alt.Axis(values=values, format="~r"), "speed-up"
    )


def _efficiency(data: ChartData) -> alt.LayerChart:
    _, high = _range(data)
    scale = alt.Scale(domain=[0, max(1.08, high * 1.04)], nice=False)
    axis = alt.Axis(values=[0, 0.2, 0.4, 0.6, 0.8, 1, 1.2, 1.4], format="%")
    return _scaling(data, "Efficiency", scale, axis, "efficiency")


def _split(data: ChartData) -> alt.LayerChart:
    colour_of = dict(zip(PARTS.values(), _PARTS, strict=True))
    base = alt.Chart().encode(
        y=alt.Y("label:N", title=None, sort=None, axis=alt.Axis(ticks=False, domain=False, grid=False))
    )
    axis = alt.Axis(format="%", tickCount=5)
    bars = base.mark_bar(height={"band": 0.78}, invalid="show").encode(
        x=alt.X("start:Q", title="Share of the step", axis=axis, scale=alt.Scale(domain=[0, 1])),
        x2="end:Q",
        color=alt.Color("part:N", scale=alt.Scale(domain=list(data.keys), range=[colour_of[key] for key in data.keys])),
        tooltip=[
            alt.Tooltip("label:N", title="run"),
            alt.Tooltip("part:N", title="part"),
            alt.Tooltip("shown:N", title="share"),
        ],
    )
    figures = base.mark_text(color="#101010", fontSize=10, invalid="show")
    return alt.LayerChart(layer=[bars, figures.encode(x="middle:Q", text="figure:N")])


def _loss(data: ChartData) -> alt.LayerChart:
    names, colours = _key_scale(data)
    chosen = alt.selection_point(name="chosen", fields=["key"], bind="legend")
    lines = (
        alt.Chart()
        .mark_line(strokeWidth=1.6)
        .encode(
            x=alt.X("images:Q", title="Images seen", axis=alt.Axis(tickCount=5, format="~s")),
            y=alt.Y("loss:Q", title="Training loss", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5)),
            color=alt.Color("key:N", scale=alt.Scale(domain=names, range=colours)),
            strokeDash=alt.StrokeDash(
                "key:N", scale=alt.Scale(domain=names, range=[list(dash) for dash in _DASHES[: len(names)]])
            ),
            opacity=alt.condition(chosen, alt.value(1), alt.value(0.12)),
            tooltip=alt.Tooltip("key:N", title="run"),
        )
    )
    return alt.LayerChart(layer=[lines.properties(name="curves").add_params(chosen)])


_FIGURES: dict[str, tuple[Callable[[StudyResult], ChartData], Callable[[ChartData], alt.LayerChart]]] = {
    "throughput": (lambda result: scaling_data(result, "images_per_s"), _throughput),
    "speedup": (lambda result: scaling_data(result, "speedup"), _speedup),
    "efficiency": (lambda result: scaling_data(result, "efficiency"), _efficiency),
    "split": (split_data, _split),
    "loss": (loss_data, _loss),
}
NAMES = tuple(_FIGURES)
"""Stems of every figure's files."""


def _finished(chart: alt.LayerChart, data: ChartData) -> dict[str, Any]:
    """The description in panels, one per protocol, with its looks; `usermeta` tells the page how to fit it."""
    found = {row["panel"] for row in data.rows}
    panels = [heading for heading in PROTOCOLS.values() if heading in found]
    bars = "part" in data.rows[0]
    columns = 1 if bars else min(len(panels), 3)
    # Named only: Altair would copy and check every row against its schema.
    values = alt.NamedData(name="rows")
    if bars:
        # A bar is one run, and its label tells the protocol: no panels.
        whole: Any = chart.properties(data=values, width=_WIDTH - 60, height=alt.Step(24))
    else:
        width = _WIDTH if columns == 1 else round((_WIDTH + 40) / columns) - 16
        panelled = chart.properties(width=width, height=_PANEL_HEIGHT)
        whole = panelled.facet(data=values, facet=alt.Facet("panel:N", sort=panels, title=None), columns=columns)
    widest = max(len(key) for key in (*data.keys, data.others))
    item_px = 44 + round(6.2 * widest)
    document: dict[str, Any] = whole.to_dict(validate=False)
    document["data"] = {"values": list(data.rows)}
    legend = {**_CONFIG["legend"], "columns": max(1, min(len(data.keys) + bool(data.others), _WIDTH // item_px))}
    if len(data.keys) == 1 and not data.others and not bars:
        legend["disable"] = True
    document["config"] = {**_CONFIG, "legend": legend}
    document["usermeta"] = {"panels": columns, "legend_item_px": item_px}
    document.pop("$schema", None)
    return document


def _svg(spec: dict[str, Any], name: str) -> str:
    svg: str = vl_convert.vegalite_to_svg(json.dumps(spec), vl_version=VEGA_LITE)
    # Several SVGs stand in one page: ids must differ.
    return svg.replace('id="', f'id="{name}-').replace("url(#", f"url(#{name}-")


def _key_scale(data: ChartData) -> tuple[list[str], list[str]]:
    names = [*data.keys, *([data.others] if data.others else [])]
    return names, [*COLOURS[: len(data.keys)], *([GREY] if data.others else [])]


def _range(data: ChartData) -> tuple[float, float]:
    ends = [value for row in data.rows for value in (row["y"], row.get("low"), row.get("high")) if value is not None]
    return min(ends), max(ends)


def _log_scale(low: float, high: float) -> alt.Scale:
    return alt.Scale(type="log", domain=[low / 1.15, high * 1.15], nice=False)


def _steps(low: float, high: float, mantissas: Sequence[float]) -> list[float]:
    """Round values between two positive ones."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = {round(mantissa * 10.0**exponent, 12) for exponent in exponents for mantissa in mantissas}
    return sorted(value for value in values if low <= value <= high)


def _powers(low: float, high: float) -> list[float]:
    exponents = range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)
    return [2.0**exponent for exponent in exponents]
