"""Figures with their intervals as text, for findings and the answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from vitscale.analysis.result import Interval
from vitscale.statistics import Estimate
from vitscale.units import number, percent, seconds

_NAMED = 3


def ratio(value: Interval | Estimate) -> str:
    """`1.89x [1.85, 1.93]`."""
    return f"{number(value.median)}x{_ends(value, number)}"


def share(value: Interval | Estimate) -> str:
    """`94.6 % [93.0, 96.2]`."""
    return f"{percent(value.median)}{_ends(value, lambda end: percent(end).removesuffix(' %'))}"


def rate(value: Interval | Estimate) -> str:
    """`1,230 images/s [1,210, 1,250]`."""
    return f"{number(value.median)} images/s{_ends(value, number)}"


def duration(value: Interval | Estimate) -> str:
    """`12.3 ms [12.1 ms, 12.6 ms]`."""
    return f"{seconds(value.median)}{_ends(value, seconds)}"


def names(labels: Sequence[str]) -> str:
    """The first few, and how many more."""
    more = len(labels) - _NAMED
    return "; ".join(labels[:_NAMED]) + (f"; and {more} more" if more > 0 else "")


def count(number_of: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    plural = f"{noun}es" if noun.endswith("ch") else noun if noun.endswith("series") else f"{noun}s"
    return f"{number_of} {noun if number_of == 1 else plural}"


def by_reason(told: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Reason -> the first label it stands beside, and how many more; `told` has label and reason."""
    labels: dict[str, list[str]] = {}
    for label, reason in told:
        labels.setdefault(reason, []).append(label)
    return {
        reason: f"{first}, and {len(others)} more" if others else first for reason, (first, *others) in labels.items()
    }


def _ends(value: Interval | Estimate, form: Callable[[float], str]) -> str:
    if value.low is None or value.high is None:
        return ""
    return f" [{form(value.low)}, {form(value.high)}]"
