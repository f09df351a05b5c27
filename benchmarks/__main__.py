"""`python -m benchmarks [NAME ...]`: measure, print one table, end with status 1 if a target was missed.

NAME is a module of this folder, or one of the groups `fast` and `slow`; without any, everything is measured.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import os
import sys
import time
from importlib import metadata
from pathlib import Path

from benchmarks.figure import Failed, Figure, say
from vitscale.hardware.probe import probe

GROUPS = {
    "fast": (
        "help_time", "imports", "report_speed", "tool_scale", "pipeline", "import_speed", "instrumentation", "sampling",
        "sequence_parallel", "memory_brackets", "prediction",
    ),
    "slow": (
        "quick", "peers", "peers_gpu", "knobs", "attribution", "clean_verdicts", "mixed_devices", "digits",
        "checkpoint_stall", "kills", "cluster_kills", "soak", "recommend", "predicted_link", "launcher_start",
    ),
}  # fmt: skip

_OF_A_TABLE = ("memory_brackets",)


def main() -> int:
    """Run what was asked for; 1 if any figure missed its target or could not be made."""
    known = [name for names in GROUPS.values() for name in names]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join([*GROUPS, *known]))
    parser.add_argument("--short", action="store_true", help="far too little of everything: tries the scripts only")
    parser.add_argument("--table", type=Path, help="published batches for memory_brackets, which are not shipped")
    given = parser.parse_args()
    names = [name for asked in given.names or GROUPS for name in GROUPS.get(asked, (asked,))]
    for name in names:
        if name not in known:
            parser.error(f"no benchmark `{name}`; there are {', '.join([*GROUPS, *known])}")
    print(_machine(given.short), flush=True)
    figures = [figure for name in dict.fromkeys(names) for figure in _measured(name, given.short, given.table)]
    print(_table(figures))
    missed = [figure.name for figure in figures if figure.met is False]
    print(f"\nmissed: {'; '.join(missed)}" if missed else "\nno target was missed")
    undecided = [figure.name for figure in figures if figure.met is None and figure.target]
    if undecided:
        print(f"not decided: {'; '.join(undecided)}")
    return 1 if missed else 0


def _measured(name: str, short: bool, table: Path | None) -> list[Figure]:
    say(f"{name} …")
    began = time.monotonic()
    keys = {"table": table} if name in _OF_A_TABLE else {}
    try:
        figures: list[Figure] = importlib.import_module(f"benchmarks.{name}").measure(short, **keys)
    except Failed as failure:
        # The other figures are still wanted; this one counts as missed.
        figures = [Figure(name, "n/a", "", "", False, f"python -m benchmarks {name}", f"failed: {failure}")]
    say(f"{name}: {time.monotonic() - began:.0f} s")
    for one in figures:
        say(f"  {one.name}: {one.median} [{one.spread or '-'}]; target {one.target or 'none'}: {_outcome(one)}")
    return figures


def _machine(short: bool) -> str:
    """What the figures belong to."""
    machine = probe()
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("vitscale", "torch", "deepspeed", "timm"))
    load = os.getloadavg()[0]
    lines = [
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC, {machine.cpu_name or 'unknown CPU'}, "
        f"{len(machine.cores)} cores, load {load:.2f} before the start",
        f"python {sys.version.split()[0]}, {versions}",
    ]
    if short:
        lines.append("--short: these are no measurements")
    return "\n".join(lines) + "\n"


def _table(figures: list[Figure]) -> str:
    rows = ["| figure | median | spread | target | met | command |", "|---|---|---|---|---|---|"]
    for one in figures:
        target = one.target or "none"
        rows.append(
            f"| {one.name} | {one.median} | {one.spread or '-'} | {target} | {_outcome(one)} | `{one.command}` |"
        )
    notes = [f"- {one.name}: {one.note}" for one in figures if one.note]
    return "\n".join([*rows, "", *notes] if notes else rows)


def _outcome(figure: Figure) -> str:
    return {True: "yes", False: "NO", None: "-"}[figure.met]


if __name__ == "__main__":
    sys.exit(main())
