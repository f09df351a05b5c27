"""Sensors of the devices against time."""

from __future__ import annotations

import altair as alt

from vitscale.report.figures.look import key_scale
from vitscale.report.rows import ChartData


def sensors(data: ChartData) -> alt.LayerChart:
    """A line per device, in the colour of its run; every panel has a scale of its own."""
    names, colours = key_scale(data)
    chosen = alt.selection_point(name="chosen", fields=["key"], bind="legend")
    lines = (
        alt.Chart()
        .mark_line(strokeWidth=1.4)
        .encode(
            x=alt.X("x:Q", title="Seconds since the steps began", axis=alt.Axis(tickCount=5)),
            y=alt.Y("y:Q", title=None, axis=alt.Axis(tickCount=5)),
            detail="device:N",
            color=alt.Color("key:N", scale=alt.Scale(domain=names, range=colours)),
            opacity=alt.condition(chosen, alt.value(1), alt.value(0.12)),
            tooltip=[alt.Tooltip("key:N", title="run"), alt.Tooltip("device:N", title="device")],
        )
    )
    return alt.LayerChart(layer=[lines.properties(name="curves").add_params(chosen)])
