"""Against the batch, the accumulation, and what a larger batch costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import altair as alt

from vitscale.report.figures.look import INK, SHAPES, key_scale
from vitscale.report.rows import ChartData


def sweep(title: str) -> Callable[[ChartData], alt.LayerChart]:
    """A chart against what `title` names, on a logarithmic axis; every panel has a scale of its own."""
    return lambda data: alt.LayerChart(layer=_points(data, title, alt.Y("y:Q", title=None, axis=_FIVE)))


def efficiency_split(data: ChartData) -> alt.LayerChart:
    """System and algorithmic efficiency and their product."""
    y = alt.Y("y:Q", title="Efficiency", axis=alt.Axis(format="%", tickCount=5), scale=alt.Scale(zero=True))
    ideal = alt.Chart().mark_rule(color=INK, opacity=0.5, strokeDash=[5, 4], strokeWidth=1.2).encode(y=alt.datum(1))
    return alt.LayerChart(layer=[ideal, *_points(data, "World size (ranks)", y)])


def costs(data: ChartData) -> alt.LayerChart:
    """Energy and money against world size, the knees ringed."""
    layers = _points(data, "World size (ranks)", alt.Y("y:Q", title=None, axis=_FIVE))
    # Hidden where there is none: a panel without any row of a layer would have no scale, and Vega would say so.
    knee = layers[0].mark_point(filled=False, shape="circle", size=230, strokeWidth=2)
    ring = knee.encode(opacity=alt.condition("datum.knee", alt.value(1), alt.value(0)))
    return alt.LayerChart(layer=[*layers, ring])


_FIVE = alt.Axis(tickCount=5, format=",~r")


def _points(data: ChartData, title: str, y: alt.Y) -> list[alt.Chart]:
    values = sorted({row["x"] for row in data.rows})
    names, colours = key_scale(data)
    chosen = alt.selection_point(name="chosen", fields=["key"], bind="legend")
    x = alt.X(
        "x:Q",
        title=title,
        scale=alt.Scale(type="log", base=2, domain=[values[0] / 1.2, values[-1] * 1.2], nice=False),
        axis=alt.Axis(values=values, format="d", labelOverlap=True),
    )
    base = (
        alt.Chart()
        .encode(x=x, color=alt.Color("key:N", scale=alt.Scale(domain=names, range=colours)))
        .encode(opacity=alt.condition(chosen, alt.value(1), alt.value(0.15)))
    )
    shapes = alt.Scale(domain=names, range=list(SHAPES[: len(names)]))
    tooltip: list[Any] = [alt.Tooltip("key:N", title="curve"), alt.Tooltip("shown:N", title="value")]
    points = base.mark_point(filled=True, size=55, opacity=1).encode(
        y=y, shape=alt.Shape("key:N", scale=shapes), tooltip=tooltip
    )
    # Of several runs at one place a line would go through each, up and down.
    line = base.mark_line(strokeWidth=1.6).encode(y=y.aggregate("mean"))
    layers = [line, points.properties(name="points").add_params(chosen)]
    if any(row.get("low") is not None for row in data.rows):
        ends = {end: f"isValid(datum.{end}) ? datum.{end} : datum.y" for end in ("low", "high")}
        bars = base.transform_calculate(**ends).mark_rule(strokeWidth=1.5)
        layers.insert(1, bars.encode(y=alt.Y("low:Q", title=None), y2="high:Q"))
    return layers
