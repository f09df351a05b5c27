"""The verbs that read must not import torch: asked of `sys.modules` at the end of the verb, in a fresh process."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.figure import ROOT, Failed, Figure, run, spread
from vitscale import units
from vitscale.statistics import median_of

HEAVY = ("torch", "torchvision", "deepspeed", "timm")

PROGRAM = """
import json, sys
from vitscale import cli
sys.argv[0] = "vitscale"
try:
    cli.main()
finally:
    heads = sorted({name.partition(".")[0] for name in sys.modules})
    print(json.dumps(heads), file=sys.stderr)
"""


def measure(short: bool) -> list[Figure]:
    """`plan`, `report` and `compare` in turns; the study they read is the one the tests read."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for copy in ("a", "b"):
            shutil.copytree(ROOT / "tests/golden/study", folder / copy)
        verbs = (["plan", "quick"], ["report", "a"], ["compare", "a", "b"])
        seen: dict[str, list[tuple[float, set[str]]]] = {" ".join(verb): [] for verb in verbs}
        for _ in range(2 if short else 5):
            for verb in verbs:
                seen[" ".join(verb)].append(_imported(verb, folder))
    return [_figure(verb, runs) for verb, runs in seen.items()]


def _imported(verb: list[str], folder: Path) -> tuple[float, set[str]]:
    done = run([sys.executable, "-c", PROGRAM, *verb], folder)
    heads = set(json.loads(done.stderr.splitlines()[-1]))
    if "vitscale" not in heads or not done.stdout:
        # A verb that gave up early has imported nothing, and proves nothing.
        raise Failed(f"`vitscale {' '.join(verb)}` printed nothing:\n{done.stderr[-2000:]}")
    return done.wall_s, heads & set(HEAVY)


def _figure(verb: str, runs: list[tuple[float, set[str]]]) -> Figure:
    found = set().union(*(heavy for _, heavy in runs))
    walls_s = [wall_s for wall_s, _ in runs]
    return Figure(
        f"heavy packages imported by {verb.split()[0]}",
        f"{len(found)} ({', '.join(sorted(found)) or 'none'})",
        f"n = {len(runs)}",
        f"none of {', '.join(HEAVY)}",
        not found,
        f"vitscale {verb}",
        f"wall time {units.seconds(median_of(walls_s))}, {spread(walls_s, units.seconds)}, the first not left out",
    )
