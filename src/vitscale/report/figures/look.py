"""How figures look: colours, shapes, sizes, scales, panels.

Text, axes and grid are `currentColor`, so that a chart has the colour of the page around it, light or dark, and black
on paper. No colour of a mark is too pale for white or too dark for black (contrast of 3 or more to both).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import altair as alt

from vitscale.report.rows import ChartData

# Okabe and Ito's colours for the colour-blind, those too pale for white darkened, and a shape and a dash each.
COLOURS = ("#2e86c1", "#d55e00", "#009e73", "#c46c9c", "#b98000", "#8c6bb1", "#5f8a24", "#3a9fd6")
GREY = "#8a8a8a"
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right", "triangle-left")
DASHES = ((1, 0), (7, 3), (2, 2), (10, 3, 2, 3), (4, 4), (12, 4), (2, 5), (8, 2, 2, 2, 2, 2))
WIDTH = 620
PANEL_HEIGHT = 230
_FONT = "Helvetica, Arial, 'Liberation Sans', sans-serif"
INK = "currentColor"
_LINE_BREAK = "\u241f"  # in no name; a plain newline would break Vega-Lite's order of the panels
_HEADING_CHARACTERS = {2: 46, 3: 30}  # of bold 12.5 px text, in a panel's width
CONFIG: dict[str, Any] = {
    "background": "transparent",
    "lineBreak": _LINE_BREAK,
    "font": _FONT,
    "padding": 4,
    # The page gives every figure a text alternative; one per mark would double the file.
    "aria": False,
    "axis": {
        "labelColor": INK, "titleColor": INK, "domainColor": INK, "tickColor": INK, "gridColor": INK,
        "gridOpacity": 0.13, "domainOpacity": 0.45, "tickOpacity": 0.45, "labelOpacity": 0.85, "titleOpacity": 0.85,
        "labelFontSize": 11, "titleFontSize": 11.5, "titleFontWeight": "normal", "titlePadding": 7, "labelPadding": 4,
    },
    "axisX": {"grid": False},
    "axisY": {"labelLimit": 260},
    "header": {
        "title": None, "labelColor": INK, "labelFontSize": 12.5, "labelFontWeight": "bold", "labelAnchor": "start",
        "labelPadding": 6, "labelLimit": 0,
    },
    "legend": {
        "orient": "top", "title": None, "labelColor": INK, "labelFontSize": 11.5, "labelLimit": 420, "symbolSize": 80,
        "rowPadding": 4, "columnPadding": 18, "offset": 8, "symbolStrokeWidth": 2,
        "layout": {"top": {"anchor": "start", "bounds": "full", "margin": 8}},
    },
    "view": {"stroke": None},
    "facet": {"spacing": 28},
    "text": {"color": INK},
}  # fmt: skip


def finished(chart: alt.LayerChart, data: ChartData, independent: Sequence[str] = ()) -> dict[str, Any]:
    """The description in panels with its looks; `usermeta` tells the page how to fit it.

    `independent` names the axes (`x`, `y`) of which each panel has its own.
    """
    bars = not data.panels
    columns = 1 if bars else _columns(data.panels)
    # Named only: Altair would copy and check every row against its schema.
    values = alt.NamedData(name="rows")
    if bars:
        # A bar is one run, and its label tells the protocol: no panels.
        whole: Any = chart.properties(data=values, width=WIDTH - 60, height=alt.Step(24))
    else:
        width = WIDTH if columns == 1 else round((WIDTH + 40) / columns) - 16
        panelled = chart.properties(width=width, height=PANEL_HEIGHT)
        whole = panelled.facet(
            data=values,
            facet=alt.Facet("panel:N", sort=[_heading(one, columns) for one in data.panels], title=None),
            columns=columns,
        )
        whole = whole.resolve_scale(**dict.fromkeys(independent, "independent"))
    widest = max(len(key) for key in (*data.keys, data.others))
    item_px = 44 + round(6.2 * widest)
    document: dict[str, Any] = whole.to_dict(validate=False)
    rows = data.rows if bars else [{**row, "panel": _heading(row["panel"], columns)} for row in data.rows]
    document["data"] = {"values": list(rows)}
    legend = {**CONFIG["legend"], "columns": max(1, min(len(data.keys) + bool(data.others), WIDTH // item_px))}
    if len(data.keys) == 1 and not data.others and not bars:
        legend["disable"] = True
    document["config"] = {**CONFIG, "legend": legend}
    if bars:
        # Its labels are measured in another font than the reader may have.
        document["config"]["padding"] = {"left": 24, "top": 4, "right": 4, "bottom": 4}
    document["usermeta"] = {"panels": columns, "legend_item_px": item_px}
    document.pop("$schema", None)
    return document


def _columns(panels: Sequence[str]) -> int:
    """As many panels side by side as their headings leave room for, 3 at most."""
    most = min(len(panels), 3)
    fitting = (
        columns
        for columns in range(most, 1, -1)
        if all(len(line) <= _HEADING_CHARACTERS[columns] for one in panels for line in _lines(one, columns))
    )
    return next(fitting, 1)


def _lines(panel: str, columns: int) -> list[str]:
    return _heading(panel, columns).split(_LINE_BREAK)


def _heading(panel: str, columns: int) -> str:
    """A panel's heading; above narrow panels, or where it is long, in two lines."""
    return panel.replace(": ", f":{_LINE_BREAK}", 1) if columns > 2 or len(panel) > _HEADING_CHARACTERS[2] else panel


def key_scale(data: ChartData) -> tuple[list[str], list[str]]:
    """Keys and their colours, the grey one last."""
    names = [*data.keys, *([data.others] if data.others else [])]
    return names, [*COLOURS[: len(data.keys)], *([GREY] if data.others else [])]


def log_scale(low: float, high: float) -> alt.Scale:
    """A logarithmic scale that ends just beyond its values."""
    return alt.Scale(type="log", domain=[low / 1.15, high * 1.15], nice=False)


def round_values(low: float, high: float, mantissas: Sequence[float]) -> list[float]:
    """Round values between two positive ones."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = {round(mantissa * 10.0**exponent, 12) for exponent in exponents for mantissa in mantissas}
    return sorted(value for value in values if low <= value <= high)


def powers(low: float, high: float) -> list[float]:
    """Powers of two between two positive values."""
    exponents = range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)
    return [2.0**exponent for exponent in exponents]
