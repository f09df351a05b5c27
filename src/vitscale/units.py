"""Formatting only: base units (seconds, bytes, FLOP) become text here and nowhere else.

A missing number is the text `n/a`, never 0 or a guess. Three significant digits throughout.
"""

from __future__ import annotations

import math

NOT_AVAILABLE = "n/a"

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_DECIMAL = ("", "k", "M", "G", "T", "P", "E")


def number(value: float | None, digits: int = 3) -> str:
    """Format a plain number with `digits` significant digits and thousands separators."""
    if value is None or not math.isfinite(value):
        return NOT_AVAILABLE
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def seconds(value: float | None) -> str:
    """Format a duration: `850 µs`, `12.3 ms`, `4.56 s`, `2 min 05 s`, `3 h 20 min`."""
    if value is None or not math.isfinite(value):
        return NOT_AVAILABLE
    magnitude = abs(value)
    if round(magnitude) >= 3600:
        hours, rest = divmod(round(magnitude / 60), 60)
        return f"{'-' if value < 0 else ''}{hours} h {rest:02d} min"
    if magnitude >= 100:
        minutes, rest = divmod(round(magnitude), 60)
        return f"{'-' if value < 0 else ''}{minutes} min {rest:02d} s"
    if magnitude >= 1 or value == 0:
        return f"{number(value)} s"
    if magnitude >= 1e-3:
        return f"{number(value * 1e3)} ms"
    return f"{number(value * 1e6)} µs"


def energy(value: float | None) -> str:
    """Format joules: `850 J`, `12.3 kJ`, `1.20 kWh`."""
    if value is None or not math.isfinite(value):
        return NOT_AVAILABLE
    return f"{number(value / 3.6e6)} kWh" if abs(value) >= 3.6e6 else decimal(value, "J")


def percent(share: float | None, decimals: int = 1) -> str:
    """Format a fraction as percent: 0.953 becomes `95.3 %`."""
    if share is None or not math.isfinite(share):
        return NOT_AVAILABLE
    return f"{share * 100:.{decimals}f} %"


def probability(share: float | None) -> str:
    """Format a probability as whole percents; nothing is certain: 0.998 becomes `> 99 %`."""
    if share is None or 0.01 <= share <= 0.99:
        return percent(share, 0)
    return "< 1 %" if share < 0.5 else "> 99 %"


def ranks(count: int) -> str:
    """Format a number of ranks: `1 rank`, `1,024 ranks`."""
    return f"{count:,} rank{'s' * (count != 1)}"


def size(count: float | None) -> str:
    """Format bytes with binary prefixes: 22020096 becomes `21.0 MiB`."""
    if count is None or not math.isfinite(count):
        return NOT_AVAILABLE
    power = min(len(_BINARY) - 1, int(math.log2(abs(count)) // 10)) if abs(count) >= 1 else 0
    return f"{number(count / 1024**power)} {_BINARY[power]}"


def decimal(value: float | None, unit: str) -> str:
    """Format with decimal prefixes: (1.05e11, "FLOP") becomes `105 GFLOP`."""
    if value is None or not math.isfinite(value):
        return NOT_AVAILABLE
    power = min(len(_DECIMAL) - 1, int(math.log10(abs(value)) // 3)) if abs(value) >= 1 else 0
    return f"{number(value / 1000**power)} {_DECIMAL[power]}{unit}"
