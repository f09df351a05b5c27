"""Measured efficiency, and the predicted one with its bands."""

from __future__ import annotations

import altair as alt

from vitscale.report.figures.look import key_scale
from vitscale.report.rows import ChartData


def prediction(data: ChartData) -> alt.LayerChart:
    """Efficiency against world size; bands are 80 and 95 %."""
    sizes = sorted({row["world_size"] for row in data.rows})
    x = alt.X(
        "world_size:Q",
        title="World size (ranks)",
        scale=alt.Scale(type="log", base=2, domain=[sizes[0] / 1.2, sizes[-1] * 1.2], nice=False),
        axis=alt.Axis(values=sizes, format=",d", labelOverlap=True),
    )
    high = max(row.get("high95", row["y"]) for row in data.rows)
    axis = alt.Axis(values=[0, 0.2, 0.4, 0.6, 0.8, 1, 1.2, 1.4], format="%")
    scale = alt.Scale(domain=[0, max(1.08, high * 1.04)], nice=False)

    def y(field: str) -> alt.Y:
        return alt.Y(f"{field}:Q", title="Efficiency", scale=scale, axis=axis)

    names, colours = key_scale(data)
    colour = alt.Color("key:N", scale=alt.Scale(domain=names, range=colours))
    base = alt.Chart().encode(x=x, color=colour)
    said = base.transform_filter("datum.kind === 'predicted'")
    tooltip = [alt.Tooltip("world_size:Q", title="ranks"), alt.Tooltip("y:Q", format=".1%"), alt.Tooltip("shown:N")]
    return alt.LayerChart(
        layer=[
            said.mark_area(opacity=0.13).encode(y=y("low95"), y2="high95:Q"),
            said.mark_area(opacity=0.2).encode(y=y("low80"), y2="high80:Q"),
            said.mark_rule(strokeWidth=1.2).encode(y=y("low95"), y2="high95:Q"),
            said.mark_rule(strokeWidth=3.2).encode(y=y("low80"), y2="high80:Q"),
            base.mark_line(strokeWidth=1.6, strokeDash=[4, 3]).encode(y=y("y")),
            said.mark_point(filled=False, size=62, strokeWidth=1.8).encode(y=y("y"), tooltip=tooltip),
            base.transform_filter("datum.kind === 'run'")
            .mark_point(filled=True, size=62, opacity=1)
            .encode(y=y("y"), tooltip=tooltip),
        ]
    )
