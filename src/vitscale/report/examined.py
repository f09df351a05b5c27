"""What `vitscale doctor` prints: a line per check, what to type for those that failed, and a line per pair."""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vitscale import units
from vitscale.analysis import text
from vitscale.records.examination import DoctorReport, Examination
from vitscale.report.terminal import clean

_STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red"}
_MOST_PAIRS = 12


def print_report(report: DoctorReport, path: Path, out: Console) -> None:
    """Print what was found, and where it lies."""
    ranks = text.count(report.world_size, "rank")
    hosts = text.count(report.nodes, "host")
    out.print(
        clean(f"{ranks} on {hosts}, started by `{report.launcher}`, for {report.model} of study `{report.study}`")
    )
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("", "check", "where"):
        table.add_column(name, no_wrap=True)
    table.add_column("found", overflow="fold")
    for check in report.checks:
        cells = (clean(cell) for cell in (check.name, check.where, check.text))
        table.add_row(Text(check.status, style=_STYLES[check.status]), *cells)
    out.print(table)
    if report.together and report.together.pairs:
        out.print(_pairs(report.together))
    for check in report.checks:
        if check.hint and check.status != "ok":
            out.print(Text(f"{check.name}  ", style=_STYLES[check.status]) + clean(f"{check.where}: {check.hint}"))
    out.print(Text.assemble(("doctor  ", "bold"), clean(path)))


def _pairs(together: Examination) -> Table:
    """The slowest pairs, and the collectives of all ranks."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("link", no_wrap=True)
    for name in ("bytes", "time", "algorithm bandwidth", "bus bandwidth"):
        table.add_column(name, justify="right", no_wrap=True)
    for members, pairs in ((together.between, together.pairs), ("ranks", together.inside)):
        slowest = sorted(pairs, key=lambda one: one.bytes_per_s)
        for one in slowest[:_MOST_PAIRS]:
            rate = units.decimal(one.bytes_per_s, "B/s")
            moved_s = one.bytes / one.bytes_per_s
            table.add_row(f"{members} {one.a} and {one.b}", units.size(one.bytes), units.seconds(moved_s), rate, rate)
        if len(slowest) > _MOST_PAIRS:
            table.add_row(f"{len(slowest) - _MOST_PAIRS} faster pairs of {members}", "", "", "", "")
    for timing in together.links.timings if together.links else ():
        if timing.operation == "all_reduce":
            algorithm, bus = timing.algorithm_bytes_per_s, timing.bus_bytes_per_s
            rates = (units.decimal(algorithm, "B/s"), units.decimal(bus, "B/s"))
            moved_s = timing.bytes / algorithm
            table.add_row("all ranks, all-reduce", units.size(timing.bytes), units.seconds(moved_s), *rates)
    return table
