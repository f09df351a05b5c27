"""The soak: `vitscale train digits` is killed 20 times at random moments and restarted by the same command.

At the end it has the weights, the evaluations and the losses of a training that was never stopped, to the last bit.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

from benchmarks.figure import VITSCALE, Figure, run, say, shown
from benchmarks.killing import Killer

COMMAND = ["vitscale", "train", "digits"]
LATEST_SHARE = 0.2
"""A kill comes at most this share of a whole training after the one before it, so that most of them meet steps."""

SHORT = ["train.epochs=20", "train.eval_epochs=2"]


def measure(short: bool) -> list[Figure]:
    """One training as it is, then the same through 20 kills; another one where that ends before them."""
    command = [*COMMAND, *(SHORT if short else [])]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        say(f"  {shown(command)}, not stopped")
        whole = run([VITSCALE, *command[1:], "--out", str(root / "whole")], root)
        killer = Killer(command, root, 5 if short else 20, LATEST_SHARE * whole.wall_s)
        killed: list[Path] = []
        while not killer.done:
            killed.append(root / f"killed{len(killed)}")
            killer.carry(killed[-1])
        wanted = _outcome(root / "whole")
        different = {what for one in killed for what, digest in _outcome(one).items() if digest != wanted[what]}
        resumed = sum(_resumed(one) for one in killed)
    killer.print_table()
    spread = f"kills: {len(killer.kills)}, trainings: {len(killed)}"
    note = f"went on from a checkpoint {resumed} times; the training that was not stopped took {whole.wall_s:.0f} s"
    return [
        *killer.figures(f"trainings: {len(killed)}"),
        *(
            Figure(
                f"{what} after the kills, against a training that was not stopped",
                "different" if what in different else "equal to the last bit",
                spread,
                "equal",
                what not in different,
                shown(command),
                note if what == "weights" else "",
            )
            for what in wanted
        ),
    ]


def _outcome(results: Path) -> dict[str, str]:
    """Digests of what a training leaves behind: its weights, its evaluations, and the loss of every step and rank."""
    lines = [json.loads(line) for path in results.glob("runs/*/launch*/steps.*.jsonl") for line in _whole_lines(path)]
    # A step taken again after a kill has to repeat its loss: a set of one value for each step and rank.
    losses = sorted({(line["step"], line["rank"], line["loss"]) for line in lines})
    finished = max(results.glob("runs/*/launch*/eval.jsonl"), key=lambda path: int(path.parent.name[len("launch") :]))
    evaluations = [{**json.loads(line), "seconds": None} for line in finished.read_text().splitlines()]
    return {
        "weights": hashlib.sha256((results / "export" / "model.safetensors").read_bytes()).hexdigest(),
        "evaluations": _digest(evaluations),
        "losses": _digest(losses),
    }


def _whole_lines(path: Path) -> list[str]:
    """Lines with their end: a kill may tear the last one."""
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _digest(document: object) -> str:
    return hashlib.sha256(json.dumps(document).encode()).hexdigest()


def _resumed(results: Path) -> int:
    """Launches that went on from a checkpoint, killed ones too, by the rounds that were asked for them."""
    rounds = [json.loads(path.read_text()) for path in results.glob("rounds/*/round.json")]
    return sum(entry["checkpoints"]["resume"] is not None for one in rounds for entry in one["entries"])
