"""From ideal throughput to the measured one, each bar what one part of the step takes beyond its ideal."""

from __future__ import annotations

import altair as alt

from vitscale.report.figures.look import INK
from vitscale.report.rows import ChartData
from vitscale.report.rows.waterfall import ENDS, GAINED, LOST

_COLOURS = {ENDS: "#2e86c1", LOST: "#d55e00", GAINED: "#009e73"}


def waterfall(data: ChartData) -> alt.LayerChart:
    """Bars from the top down, one panel per run."""
    order = list(dict.fromkeys(row["bar"] for row in data.rows))
    most = max(row["at"] for row in data.rows)
    # Room for the figure beside the longest bar.
    scale = alt.Scale(domain=[0, most * 1.22], nice=False)
    base = alt.Chart().encode(
        y=alt.Y("bar:N", title=None, sort=order, axis=alt.Axis(ticks=False, domain=False, grid=False)),
    )
    bars = base.mark_bar(height={"band": 0.7}).encode(
        x=alt.X(
            "start:Q",
            title="Share of ideal throughput",
            scale=scale,
            axis=alt.Axis(format="%", values=[0, 0.25, 0.5, 0.75, 1]),
        ),
        x2="end:Q",
        color=alt.Color("kind:N", scale=alt.Scale(domain=list(data.keys), range=[_COLOURS[key] for key in data.keys])),
        tooltip=[
            alt.Tooltip("panel:N", title="run"),
            alt.Tooltip("bar:N", title="part"),
            alt.Tooltip("figure:N", title="of ideal"),
            alt.Tooltip("shown:N", title="is"),
        ],
    )
    figures = base.mark_text(align="left", dx=4, fontSize=10.5, color=INK)
    return alt.LayerChart(layer=[bars, figures.encode(x=alt.X("at:Q", scale=scale), text="figure:N")])
