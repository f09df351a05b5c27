"""What a rank holds, a bar per run, and where the closed form ends."""

from __future__ import annotations

import altair as alt

from vitscale.report.figures.look import COLOURS
from vitscale.report.rows import ChartData


def memory(data: ChartData) -> alt.LayerChart:
    """Stacked classes, a stroke at the sum of the closed forms."""
    base = alt.Chart().encode(
        y=alt.Y("label:N", title=None, sort=None, axis=alt.Axis(ticks=False, domain=False, grid=False))
    )
    bars = base.mark_bar(height={"band": 0.78}).encode(
        x=alt.X("start:Q", title=data.rows[0]["unit"], axis=alt.Axis(tickCount=5)),
        x2="end:Q",
        color=alt.Color("part:N", scale=alt.Scale(domain=list(data.keys), range=list(COLOURS[: len(data.keys)]))),
        tooltip=[
            alt.Tooltip("label:N", title="run"),
            alt.Tooltip("part:N", title="class"),
            alt.Tooltip("shown:N", title="measured"),
        ],
    )
    stroke = base.mark_tick(color="currentColor", thickness=2, size=22).encode(
        x="derived:Q", tooltip=[alt.Tooltip("derived_shown:N", title="closed form")]
    )
    return alt.LayerChart(layer=[bars, stroke])
