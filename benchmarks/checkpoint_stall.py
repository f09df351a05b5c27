"""How long training stands still for a checkpoint, against writing the same bytes raw.

A ViT-S on one rank. A checkpoint costs the time training stands still for it, which is the target's, and what it makes
the step after it longer, told beside: the disk and the digests follow while training goes on, on the rank's own core.
After each training, its newest checkpoint's files are written again in the same folder, from memory and with one fsync
each: what no way of saving can avoid. The two alternate: the disk's moods fall on both.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path

from benchmarks.figure import VITSCALE, Figure, run, say, shown, spread
from vitscale import units
from vitscale.records import checkpoint
from vitscale.statistics import median_of

TARGET_TIMES = 2.0
SAVES, STEPS = 4, 4
COMMAND = [
    "vitscale", "train", "quick", "protocol=strong", "model.name=vit_small_patch16_224", "world_size=1",
    "global_batch=8", f"data.images={8 * SAVES * STEPS}", "train.epochs=1", f"train.checkpoint_epochs={1 / SAVES}",
    f"train.keep={SAVES}",
]  # fmt: skip
SMALL = ["depth=2", "embed_dim=192"]


def measure(short: bool) -> list[Figure]:
    """Five trainings of four checkpoints each, and after each the raw writes."""
    command = [*COMMAND, *(SMALL if short else [])]
    saves_s, raws_s, excess_s = list[float](), list[float](), list[float]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(2 if short else 5):
            out = folder / f"train{number}"
            run([VITSCALE, *command[1:], "--out", str(out)], folder)
            for kept, figure_s in zip((saves_s, excess_s), _save_s(out), strict=True):
                kept.append(figure_s)
            parts = _bytes_of(out)
            raws_s.append(median_of([_raw_s(out / f"raw{save}", parts) for save in range(SAVES)]))
            say(
                f"  save {units.seconds(saves_s[-1])}, next step {units.seconds(excess_s[-1])} longer, "
                f"raw {units.seconds(raws_s[-1])}"
            )
        size = sum(map(len, parts))
    times = [save / raw for save, raw in zip(saves_s, raws_s, strict=True)]
    note = (
        f"{units.size(size)}: {units.seconds(median_of(saves_s))} ({spread(saves_s, units.seconds)}) for a checkpoint, "
        f"the next step {units.seconds(median_of(excess_s))} ({spread(excess_s, units.seconds)}) longer, "
        f"{units.seconds(median_of(raws_s))} ({spread(raws_s, units.seconds)}) for its bytes"
    )
    median = median_of(times)
    target = f"<= {TARGET_TIMES:g} x"
    return [
        Figure(
            "stall of a checkpoint over a raw write",
            f"{median:.2f} x",
            spread(times, "{:.2f} x".format),
            target,
            median <= TARGET_TIMES,
            shown(command),
            note,
        )
    ]


def _save_s(results: Path) -> tuple[float, float]:
    """Mean stall of a checkpoint, by the manifest, and the excess of a step after one over the others."""
    (folder,) = results.glob("runs/*/launch0")
    stall_s = float(json.loads((folder / "manifest.json").read_text())["times"]["checkpoint_s"])
    steps_s = [float(json.loads(line)["step_s"]) for line in (folder / "steps.rank000.jsonl").read_text().splitlines()]
    usual_s = median_of([step_s for step, step_s in enumerate(steps_s) if step % STEPS])
    excess_s = sum(steps_s[step] - usual_s for step in range(STEPS, SAVES * STEPS, STEPS))
    return stall_s / SAVES, excess_s / (SAVES - 1)


def _bytes_of(results: Path) -> list[bytes]:
    newest = checkpoint.newest(results / "checkpoints")
    assert newest is not None
    return [path.read_bytes() for path in sorted(newest.rglob("*")) if path.is_file()]


def _raw_s(folder: Path, parts: list[bytes]) -> float:
    """Write and fsync files of these bytes in a new folder. They stay, as checkpoints do: a file that takes the pages
    of one just removed is written five times as fast here."""
    folder.mkdir()
    paths = [folder / str(number) for number in range(len(parts))]
    began = time.perf_counter()
    for path, data in zip(paths, parts, strict=True):
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    return time.perf_counter() - began
