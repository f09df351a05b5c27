"""Training loss, and what the test set says as training goes on."""

from __future__ import annotations

from typing import Any

import altair as alt

from vitscale.report.figures.look import DASHES, INK, SHAPES, key_scale
from vitscale.report.rows import ChartData


def loss(data: ChartData) -> alt.LayerChart:
    """Training loss against the images seen."""
    names, colours = key_scale(data)
    chosen = alt.selection_point(name="chosen", fields=["key"], bind="legend")
    lines = (
        alt.Chart()
        .mark_line(strokeWidth=1.6)
        .encode(
            x=alt.X("images:Q", title="Images seen", axis=alt.Axis(tickCount=5, format="~s")),
            y=alt.Y("loss:Q", title="Training loss", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5)),
            color=alt.Color("key:N", scale=alt.Scale(domain=names, range=colours)),
            strokeDash=alt.StrokeDash(
                "key:N", scale=alt.Scale(domain=names, range=[list(dash) for dash in DASHES[: len(names)]])
            ),
            opacity=alt.condition(chosen, alt.value(1), alt.value(0.12)),
            tooltip=alt.Tooltip("key:N", title="run"),
        )
    )
    return alt.LayerChart(layer=[lines.properties(name="curves").add_params(chosen)])


def accuracy(data: ChartData) -> alt.LayerChart:
    """Test accuracy, with the target where the study has one."""
    return _test(data, "Test accuracy", alt.Axis(format="%", tickCount=5))


def test_loss(data: ChartData) -> alt.LayerChart:
    """Mean cross-entropy on the test set."""
    return _test(data, "Test loss", alt.Axis(tickCount=5))


def _test(data: ChartData, title: str, axis: alt.Axis) -> alt.LayerChart:
    y = alt.Y("y:Q", title=title, axis=axis, scale=alt.Scale(zero=False))
    names, colours = key_scale(data)
    chosen = alt.selection_point(name="chosen", fields=["key"], bind="legend")
    base = (
        alt.Chart()
        .transform_filter("datum.key !== null")
        .encode(
            x=alt.X("x:Q", title=None, axis=alt.Axis(tickCount=4, format="~s")),
            y=y,
            color=alt.Color("key:N", scale=alt.Scale(domain=names, range=colours)),
            opacity=alt.condition(chosen, alt.value(1), alt.value(0.12)),
        )
    )
    shapes = alt.Scale(domain=names, range=list(SHAPES[: len(names)]))
    tooltip: list[Any] = [alt.Tooltip("key:N", title="run"), alt.Tooltip("shown:N", title=title)]
    points = base.mark_point(filled=True, size=26, opacity=1).encode(
        shape=alt.Shape("key:N", scale=shapes), tooltip=tooltip
    )
    target = alt.Chart().transform_filter("datum.key === null").encode(y=y)
    rule = target.mark_rule(color=INK, opacity=0.5, strokeDash=[5, 4], strokeWidth=1.2)
    curves = [base.mark_line(strokeWidth=1.6), points.properties(name="points").add_params(chosen)]
    has_target = any(row["key"] is None for row in data.rows)
    return alt.LayerChart(layer=[rule, *curves] if has_target else curves)
