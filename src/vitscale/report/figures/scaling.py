"""Throughput, speed-up and efficiency against world size."""

from __future__ import annotations

from typing import Any

import altair as alt

from vitscale.report.figures.look import INK, SHAPES, key_scale, log_scale, powers, round_values
from vitscale.report.rows import ChartData


def _scaling(data: ChartData, title: str, y_scale: alt.Scale, y_axis: alt.Axis, labelled: str = "") -> alt.LayerChart:
    sizes = sorted({row["world_size"] for row in data.rows if row["kind"] == "run"})
    x = alt.X(
        "world_size:Q",
        title="World size (ranks)",
        scale=alt.Scale(type="log", base=2, domain=[sizes[0] / 1.2, sizes[-1] * 1.2], nice=False),
        axis=alt.Axis(values=sizes, format="d", labelOverlap=True),
    )
    y: dict[str, Any] = {"title": title, "scale": y_scale, "axis": y_axis}
    names, colours = key_scale(data)
    colour = alt.Color("key:N", scale=alt.Scale(domain=names, range=colours))
    shapes = [SHAPES[index % len(SHAPES)] for index in range(len(data.keys))] + ["circle"] * bool(data.others)
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
        base.transform_filter("datum.joined").mark_line(strokeWidth=1.8).encode(y=alt.Y("y:Q", **y), detail="series:N"),
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
    line = base.mark_line(color=INK, opacity=0.5, strokeDash=[5, 4], strokeWidth=1.2).encode(detail="base:N")
    text = base.mark_text(align="right", baseline="bottom", dx=-8, dy=-3, opacity=0.7, fontSize=10.5)
    return [line, text.encode(text="shown:N")]


def throughput(data: ChartData) -> alt.LayerChart:
    """Images per second, on a logarithmic axis where they span much."""
    low, high = _range(data)
    if high / low < 6:
        scale, axis = alt.Scale(domain=[0, high * 1.06], nice=False), alt.Axis(tickCount=5)
    else:
        scale, axis = (
            log_scale(low, high),
            alt.Axis(values=round_values(low / 1.3, high * 1.3, (1, 2, 5)), format=",~r"),
        )
    return _scaling(data, "Images per second", scale, axis, "throughput")


def speedup(data: ChartData) -> alt.LayerChart:
    """Speed-up over the baseline; both axes are logarithmic."""
    low, high = _range(data)
    finest = (1, 1.5, 2, 3, 4, 5, 6, 8) if high / low < 10 else (1, 2, 4, 8)
    values = powers(low / 1.3, high * 1.3) if high / low >= 10 else round_values(low / 1.3, high * 1.3, finest)
    return _scaling(
        data, "Speed-up over the baseline", log_scale(low, high), alt.Axis(values=values, format="~r"), "speed-up"
    )


def efficiency(data: ChartData) -> alt.LayerChart:
    """Efficiency, 100 % marked."""
    _, high = _range(data)
    scale = alt.Scale(domain=[0, max(1.08, high * 1.04)], nice=False)
    axis = alt.Axis(values=[0, 0.2, 0.4, 0.6, 0.8, 1, 1.2, 1.4], format="%")
    return _scaling(data, "Efficiency", scale, axis, "efficiency")


def _range(data: ChartData) -> tuple[float, float]:
    ends = [value for row in data.rows for value in (row["y"], row.get("low"), row.get("high")) if value is not None]
    return min(ends), max(ends)
