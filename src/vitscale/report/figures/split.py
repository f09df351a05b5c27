"""Where a step's time goes, a bar per run."""

from __future__ import annotations

import altair as alt

from vitscale.report.rows import ChartData
from vitscale.report.rows.split import PARTS

_COLOURS = ("#b98000", "#2e86c1", "#3aa3c9", "#009e73", "#d55e00", "#c46c9c", "#e07b39", "#8c6bb1", "#8a8a8a")


def split(data: ChartData) -> alt.LayerChart:
    """Stacked shares of the step."""
    colour_of = dict(zip(PARTS.values(), _COLOURS, strict=True))
    base = alt.Chart().encode(
        y=alt.Y("label:N", title=None, sort=None, axis=alt.Axis(ticks=False, domain=False, grid=False))
    )
    axis = alt.Axis(format="%", tickCount=5)
    longest = max(1.0, *(row["end"] for row in data.rows))
    bars = base.mark_bar(height={"band": 0.78}, invalid="show").encode(
        x=alt.X("start:Q", title="Share of the step", axis=axis, scale=alt.Scale(domain=[0, longest])),
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
