"""The golden study's figures again, from its step lines alone: standard library only, nothing of vitscale.

python tests/golden/recompute.py [FOLDER]
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean, median

PARTS = ("data", "forward", "backward", "optimizer", "comm_exposed", "wait", "launch_gap")


def launch_figures(folder: Path) -> tuple[float, dict[str, float]]:
    """Median step of the slowest rank, and of all ranks the share of each part that was timed, and the rest."""
    ranks_of = defaultdict(list)
    for path in sorted(folder.glob("steps.*.jsonl")):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            if record["window"] == "steady":
                ranks_of[record["step"]].append(record)
    lines = [one for ranks in ranks_of.values() for one in ranks]
    whole = sum(one["step_s"] for one in lines)
    timed = [part for part in PARTS if all(one[f"{part}_s"] is not None for one in lines)]
    split = {part: sum(one[f"{part}_s"] for one in lines) / whole for part in timed}
    slowest = [max(one["step_s"] for one in ranks) for ranks in ranks_of.values()]
    return median(slowest), {**split, "other": 1 - sum(split.values())}


def recompute(folder: Path) -> dict[str, dict]:
    """run_id -> step_s, images_per_s, speedup, efficiency, shares."""
    found = {}
    for run in sorted((folder / "runs").iterdir()):
        launches = []
        for launch in sorted(run.glob("launch*")):
            manifest = launch / "manifest.json"
            if manifest.exists() and json.loads(manifest.read_text())["status"] == "ok":
                launches.append(launch_figures(launch))
        if launches:
            spec = json.loads((run / "launch0" / "run.json").read_text())
            step_s = median(time for time, _ in launches)
            shares = {part: fmean(split[part] for _, split in launches) for part in launches[0][1]}
            found[run.name] = {
                "spec": spec,
                "step_s": step_s,
                "images_per_s": spec["global_batch"] / step_s,
                "shares": shares,
            }
    for run in found.values():
        # In this study a series is one protocol at one ZeRO stage.
        series = [
            other
            for other in found.values()
            if not other["spec"]["oversubscribed"]
            and all(other["spec"][key] == run["spec"][key] for key in ("protocol", "zero_stage"))
        ]
        base = min(series, key=lambda other: other["spec"]["world_size"])
        run["speedup"] = run["images_per_s"] / base["images_per_s"]
        run["efficiency"] = run["speedup"] * base["spec"]["world_size"] / run["spec"]["world_size"]
    return found


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "study"
    json.dump({name: {**run, "spec": None} for name, run in recompute(folder).items()}, sys.stdout, indent=1)
