"""A small `vitscale run quick` is killed ten times at random moments and restarted by the same command.

After each kill: no process of the study is left after 5 s, and what was finished is unchanged to the byte. At the end
every run has its launches, and the analysis is what an independent script finds.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from benchmarks import agreement
from benchmarks.figure import Figure, shown
from benchmarks.killing import Killer

LAUNCHES = 3
SETTINGS = [
    f"measure.launches={LAUNCHES}",
    "measure.warmup_steps=1",
    "measure.steps=6",
    "global_batch=16",
    "micro_batch=8",
]
COMMAND = ["vitscale", "run", "quick", *SETTINGS]
LATEST_S = 15.0


def measure(short: bool) -> list[Figure]:
    """Ten kills, and their table."""
    lacking = 0
    agreements: list[agreement.Agreement] = []
    with tempfile.TemporaryDirectory() as name:
        killer = Killer(COMMAND, Path(name), 3 if short else 10, LATEST_S)
        while not killer.done:
            folder = Path(name) / f"study{len(agreements)}"
            killer.carry(folder)
            lacking += short_of(folder)
            agreements.append(agreement.compare(folder))
    killer.print_table()
    command, kills = shown(COMMAND), f"kills: {len(killer.kills)}"
    return [
        *killer.figures(f"studies: {len(agreements)}"),
        Figure("runs without all their launches at the end", str(lacking), kills, "0", not lacking, command),
        agreement.together(agreements).figure("figures after the kills that an independent script finds too", command),
    ]


def short_of(folder: Path) -> int:
    """Runs of the plan with fewer launches that are `ok` than asked for."""
    planned = [run["run_id"] for run in json.loads((folder / "plan.json").read_text())["runs"]]
    missing = 0
    for run_id in planned:
        manifests = (folder / "runs" / run_id).glob("launch*/manifest.json")
        missing += sum(json.loads(path.read_text())["status"] == "ok" for path in manifests) < LAUNCHES
    return missing
