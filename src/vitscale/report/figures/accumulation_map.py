"""ZeRO stage against accumulation, a panel per figure, each cell with its number."""

from __future__ import annotations

import altair as alt

from vitscale.report.rows import ChartData


def accumulation_map(data: ChartData) -> alt.LayerChart:
    """The darker the more; every panel has a scale of its own, since only its own figures compare."""
    del data
    base = alt.Chart().encode(
        x=alt.X("grad_accum:O", title="Micro-steps (grad_accum)", axis=alt.Axis(labelAngle=0, ticks=False)),
        y=alt.Y("stage:O", title=None, axis=alt.Axis(ticks=False, domain=False)),
    )
    # Pale enough at its darkest for dark figures on it, on white paper and on black.
    cells = base.mark_rect(stroke="currentColor", strokeOpacity=0.25).encode(
        color=alt.Color("level:Q", scale=alt.Scale(domain=[0, 1], range=["#dceaf5", "#5aa2d6"]), legend=None),
        tooltip=[
            alt.Tooltip("panel:N", title="figure"),
            alt.Tooltip("stage:N", title="stage"),
            alt.Tooltip("grad_accum:N", title="micro-steps"),
            alt.Tooltip("figure:N", title="is"),
        ],
    )
    figures = base.mark_text(color="#101010", fontSize=11).encode(text="figure:N")
    return alt.LayerChart(layer=[cells, figures])
