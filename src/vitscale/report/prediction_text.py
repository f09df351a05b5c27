"""Predictions and their errors in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vitscale import units
from vitscale.predict.ask import Answers
from vitscale.predict.model import Memory, Point, Prediction, Quantiles
from vitscale.predict.score import Scored, Summary
from vitscale.predict.suggest import Advice, Start
from vitscale.predict.validate import Validation
from vitscale.report.terminal import clean

_MOST_MISSES = 12
_GAP, _EDGE = 2, 1
"""Cells between two columns of a table by ranks, and at each of its ends."""

_Text = Callable[[float], str]
_Column = tuple[str, Callable[[Point], str]]
_whole = "{:.0%}".format
_rate: _Text = partial(units.number, digits=4)
_SHOWN: tuple[_Column, ...] = (
    ("nodes", lambda one: f"{one.layout.nodes:,}"),
    ("step, 95 %", lambda one: _wide(one.step_s, units.seconds)),
    ("images/s, 95 %", lambda one: _wide(one.images_per_s, _rate)),
    ("efficiency, 95 %", lambda one: _wide(one.efficiency, _whole)),
    ("efficiency, 80 %", lambda one: _narrow(one.efficiency, _whole)),
    ("limited by", lambda one: one.losses.limit),
)
_MEMORY: tuple[_Column, ...] = (
    ("memory/rank, 95 %", lambda one: _wide(_held(one).needed_bytes, units.size)),
    ("memory/rank, 80 %", lambda one: _narrow(_held(one).needed_bytes, units.size)),
    ("of", lambda one: units.size(_held(one).limit_bytes)),
    ("fits", lambda one: units.probability(_held(one).fit_probability)),
)
_Shown = tuple[str, str, _Text]
_ENERGY: tuple[_Shown, ...] = (
    ("energy_per_step_j", "energy/step, 95 %", units.energy),
    ("energy_per_image_j", "energy/image, 95 %", units.energy),
)
_COST: tuple[_Shown, ...] = (
    ("cost_per_million_images", "cost/million images, 95 %", units.number),
    ("cost_per_epoch", "cost/epoch, 95 %", units.number),
    ("training_s", "training, 95 %", units.seconds),
)
_OTHERS = (("images_per_s", "images/s"), ("memory_needed_bytes", "memory/rank"), ("fit_probability", "fits"))
_LEGEND = """error: median over the hidden points; linear: of perfect linear scaling; same step: of the largest known
better by: what the better of these two errs more, 95 % interval; width: half of the 95 % interval
score: interval score of the logarithms, lower is better, and that of the better of the two as wide as its errors"""


def print_answers(found: Answers, out: Console) -> None:
    """Every series asked for, and of those that are refused why."""
    for one in found.told:
        print_prediction(one.prediction, one.advice, out)
    for refused in found.refused:
        hint = f" ({refused.hint})" if refused.hint else ""
        out.print(clean(f"\n{refused.name}\nrefused  {refused.message}{hint}"))


def print_prediction(prediction: Prediction, advice: Advice | None, out: Console) -> None:
    """World sizes asked for, what limits them, where more stops paying, and what was assumed."""
    out.print(clean(f"\n{prediction.series}"))
    _print_by_ranks(prediction.points, _SHOWN, out)
    if prediction.knee is not None:
        last = prediction.knee == prediction.points[-1].layout.world_size
        beyond = "or beyond what was asked" if last else "of those asked; beyond, cost rises faster than time falls"
        out.print(clean(f"knee: {prediction.knee:,} ranks, {beyond}"))
        pays = "none" if prediction.pays is None else f"{prediction.pays:,} ranks"
        out.print(clean(f"largest that pays for itself (half of what its further ranks would give at best): {pays}"))
    print_memory(prediction, out)
    print_spending(prediction, out)
    print_missing(prediction, out)
    told = dict.fromkeys([*prediction.assumptions, *(line for one in prediction.points for line in one.assumptions)])
    for line in told:
        out.print(Text("assumed  ", style="dim") + clean(line))
    if advice is not None:
        print_advice(advice, out)


def print_memory(prediction: Prediction, out: Console) -> None:
    """What one rank takes, and whether its device has it; nothing where that is not known."""
    points = [one for one in prediction.points if one.memory is not None]
    if points:
        _print_by_ranks(points, _MEMORY, out)


def print_spending(prediction: Prediction, out: Console) -> None:
    """Energy, and cost with training: a table each of those that are known."""
    for group in (_ENERGY, _COST):
        columns = [
            (title, partial(_spent, name=name, shown=shown))
            for name, title, shown in group
            if any(getattr(one.spending, name) is not None for one in prediction.points)
        ]
        if columns:
            _print_by_ranks(prediction.points, columns, out)


def _print_by_ranks(points: Sequence[Point], columns: Sequence[_Column], out: Console) -> None:
    """Tables whose rows begin with their ranks: one, or in a narrow terminal as many as it takes that no line folds.

    A column that is wider than the terminal folds.
    """
    begin = ("ranks", [f"{one.layout.world_size:,}" for one in points])
    tables, width = [[begin]], _width(begin)
    for title, cell in columns:
        column = (title, [cell(one) for one in points])
        if len(tables[-1]) > 1 and width + _GAP + _width(column) > out.width - 2 * _EDGE:
            tables.append([begin])
            width = _width(begin)
        tables[-1].append(column)
        width += _GAP + _width(column)
    for of in tables:
        table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("ranks", justify="right", no_wrap=True, min_width=_width(begin))
        for title, _ in of[1:]:
            table.add_column(title, justify="right", overflow="fold")
        for row in zip(*(cells for _, cells in of), strict=True):
            table.add_row(*(clean(cell) for cell in row))
        out.print(table)


def _width(column: tuple[str, list[str]]) -> int:
    title, cells = column
    return max(map(len, (title, *cells)))


def print_missing(prediction: Prediction, out: Console) -> None:
    """Why a figure has no value."""
    missing: dict[str, list[str]] = {}
    for name, title in (*_OTHERS, *((name, title) for name, title, _ in (*_ENERGY, *_COST))):
        if name in prediction.reasons:
            missing.setdefault(prediction.reasons[name], []).append(title.removesuffix(", 95 %"))
    for reason, titles in missing.items():
        out.print(Text("n/a      ", style="dim") + clean(f"{', '.join(titles)}: {reason}"))


def _spent(one: Point, name: str, shown: _Text) -> str:
    told = _wide(getattr(one.spending, name), shown)
    bound = one.spending.energy_is_bound and name.startswith("energy") and told != units.NOT_AVAILABLE
    return f"at most {told}" if bound else told


def _held(one: Point) -> Memory:
    assert one.memory is not None
    return one.memory


def _wide(value: Quantiles | None, text: _Text) -> str:
    if value is None:
        return units.NOT_AVAILABLE
    return f"{text(value.median)} [{text(value.low95)}, {text(value.high95)}]"


def _narrow(value: Quantiles, text: _Text) -> str:
    return f"[{text(value.low80)}, {text(value.high80)}]"


def print_advice(advice: Advice, out: Console) -> None:
    """The runs to add, in order, each with what to paste."""
    out.print(clean(f"half-width of the 95 % interval at {advice.asked:,} ranks: {advice.half_width:.1%}"))
    if not advice.suggestions:
        out.print(
            clean("no run up to 4 times the largest measured world size, or on two nodes, narrows it by a twentieth")
        )
    for one in advice.suggestions:
        at = one.layout
        batch = (
            f"micro-batch {at.micro_batch:g}, accumulation {at.grad_accum}" if advice.batch_told else "the same batch"
        )
        cost = f"{one.device_s / 60:,.0f} device minutes"
        words = f"world_size={at.world_size} nodes={at.nodes}"
        out.print(clean(f"run  {words}  ({batch}): then about {one.half_width:.1%}; {cost}"))
        for line in _start(one.start):
            # What is pasted stays on one line, however narrow the terminal is.
            out.print(clean(f"     {line}"), soft_wrap=True)


def _start(start: Start) -> list[str]:
    if start.row is not None:
        return ["measure it and add to the table", *start.row.splitlines()]
    if start.reason is not None:
        return [f"not here: {start.reason}", *([f"elsewhere: {start.command}"] if start.command else [])]
    told = [start.command] if start.command else []
    if start.launches:
        others = f", {start.others} of them of runs laid out otherwise" if start.others else ""
        told.append(f"measures {start.launches} launch{'es' * (start.launches > 1)}{others}")
    return [*told, *([start.remark] if start.remark else [])]


def print_validation(found: Validation, out: Console) -> None:
    """Errors by table, then the worst points."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in (
        "table", "points", "error", "max", "linear", "same step", "better by", "in 95 %", "in 80 %", "width", "score",
        "base's",
    ):  # fmt: skip
        table.add_column(name, justify="left" if name == "table" else "right", no_wrap=True)
    for name, one in found.by_table.items():
        _errors(table, name, one)
        for (of, shown), own in found.by_shown.items():
            if of == name:
                _errors(table, f"  {shown} shown", own)
    _errors(table, "all", found.whole)
    out.print(table)
    out.print(clean(_LEGEND))
    told = found.from_sheets or "n/a, no device and timm ViT of which the catalog has figures"
    out.print(clean(f"from data sheets only, nothing shown: {told}"))
    floor = "n/a, nothing was run twice"
    if found.noise_floor is not None:
        floor = f"{found.noise_floor:.1%} apart, the median of two runs of one configuration"
    out.print(clean(f"noise floor: {floor}"))
    if found.short:
        out.print(clean(f"{len(found.short)} series have too few world sizes for this"))
    for noticed in found.noticed:
        count = f" ({len(noticed.series)} of {noticed.of} series)" if noticed.of > 1 else ""
        out.print(Text("assumed  ", style="dim") + clean(f"{noticed.table}: {noticed.text}{count}"))
    out.print(clean("worst first:"))
    for point in found.points[:_MOST_MISSES]:
        out.print(clean(_miss(point)))


def _errors(table: Table, name: str, one: Summary) -> None:
    gain, low, high = one.gain
    within = "n/a" if low is None or high is None else f"{low:.1%}, {high:.1%}"
    table.add_row(
        clean(name), f"{one.points:,}", f"{one.median_error:.1%}", f"{one.largest_error:.1%}",
        f"{one.linear_error:.1%}", f"{one.same_error:.1%}", f"{gain:.1%} ({within})",
        f"{one.cover95:.0%}", f"{one.cover80:.0%}", f"{one.half_width:.1%}", f"{one.score:.3f}",
        f"{one.baseline_score:.3f}",
    )  # fmt: skip


def _miss(one: Scored) -> str:
    inside = "inside" if one.said.low95 <= one.seen_s <= one.said.high95 else "outside"
    return (
        f"{one.error:+7.1%}  {one.series}: {one.fitted} world sizes to {one.largest:,} -> {one.world_size:,}: measured "
        f"{one.seen_s:.4g} s, said {one.said.median:.4g}, {inside} its 95 %"
    )
