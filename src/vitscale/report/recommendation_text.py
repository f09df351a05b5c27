"""A recommendation in the terminal."""

from __future__ import annotations

from collections.abc import Callable

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vitscale.predict.model import Quantiles
from vitscale.predict.recommend import NEAR, Judged
from vitscale.predict.recommend_ask import Answer
from vitscale.report.terminal import clean
from vitscale.units import number, percent, probability, seconds, size

_MOST_LOSERS = 12


def print_recommendation(answer: Answer, out: Console) -> None:
    """The choice, the front of time against cost, why others lost, and what was assumed."""
    found = answer.found
    out.print(Text.assemble(("choice  ", "bold"), clean(found.choice.candidate)))
    if found.tied:
        others = "1 other" if found.tied == 1 else f"{found.tied:,} others"
        near = f"at a median within {percent(NEAR, 0)} of it"
        beside = f"the choice is the simplest of those that tie with the best {near}"
        out.print(clean(f"no difference in {found.aim} detected to {others}; {beside}"))
    cost = "cost, 80 %" if answer.priced else "device-hours, 80 %"
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("least time against least cost", overflow="fold")
    for name in ("memory/rank", "fits", "time, 80 %", cost):
        table.add_column(name, justify="right", no_wrap=True)
    rows = found.front if found.choice in found.front else (found.choice, *found.front)
    for one in rows:
        mark = "* " if one.lost is None else "  "
        table.add_row(*(clean(cell) for cell in (f"{mark}{one.candidate}", *_cells(one))))
    out.print(table)
    nearest = sorted(found.losers, key=lambda one: one.time_s.median if one.time_s else float("inf"))
    for one in nearest[:_MOST_LOSERS]:
        out.print(clean(f"lost     {one.candidate}: {one.lost}"))
    if len(nearest) > _MOST_LOSERS:
        out.print(clean(f"{len(nearest) - _MOST_LOSERS:,} more in --json"))
    for line in answer.assumptions:
        out.print(Text("assumed  ", style="dim") + clean(line))


def _cells(one: Judged) -> tuple[str, ...]:
    return (
        size(one.memory_bytes),
        probability(one.fit_probability),
        _range(one.time_s, seconds),
        _range(one.cost, number),
    )


def _range(value: Quantiles | None, text: Callable[[float], str]) -> str:
    if value is None:
        return "n/a"
    return f"{text(value.median)} [{text(value.low80)}, {text(value.high80)}]"
