"""What a process start costs by each launcher, over the same start by `local`.

A study of two ranks and two steps, in turns by `local` and by the launcher; a start is the command's wall time over the
launches it made. Reading, planning and the report are the same in both.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.clusters import LAUNCHERS, Place, place
from benchmarks.figure import VITSCALE, Failed, Figure, below, shown
from vitscale import units
from vitscale.errors import SetupError

TARGET_S = 3.0
LAUNCHES = 3
COMMAND = [
    "vitscale", "run", "quick", "protocol=strong", "world_size=2", "global_batch=16", "measure.warmup_steps=1",
    "measure.steps=2", f"measure.launches={LAUNCHES}",
]  # fmt: skip
TWO_HOSTS = {"lab": ("nodes=2",), "hosts": ("nodes=2",), "slurm": ("nodes=2",)}


def measure(short: bool) -> list[Figure]:
    """Three pairs per launcher."""
    figures = []
    for launcher in LAUNCHERS[1:]:
        title, limit = f"a start by {launcher} over one by local", f"< {units.seconds(TARGET_S)}"
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            try:
                with place(launcher, folder) as there:
                    more = [_more(there, folder, pair) for pair in range(1 if short else 3)]
            except SetupError as error:
                figures.append(Figure(title, "n/a", "", limit, None, shown(COMMAND), error.message))
                continue
        figures.append(below(title, more, TARGET_S, units.seconds, shown(COMMAND)))
    return figures


def _more(there: Place, folder: Path, pair: int) -> float:
    """Seconds that a start takes longer than one by `local`, which comes first in every other pair."""
    both = (Place("local"), there)
    took = {one.launcher: _start_s(one, folder / f"{one.launcher}{pair}") for one in both[:: 1 - 2 * (pair % 2)]}
    return took[there.launcher] - took["local"]


def _start_s(there: Place, out: Path) -> float:
    settings = (*TWO_HOSTS.get(there.launcher, ()), *there.settings, "--launcher", there.launcher, "--out", str(out))
    command = [*there.prefix, VITSCALE, *COMMAND[1:], *settings]
    began = time.monotonic()
    done = subprocess.run(
        command, cwd=out.parent, env={**os.environ, **there.environ}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Failed(f"`{shown(command)}` ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return (time.monotonic() - began) / LAUNCHES
