"""The shipped study `digits`, as a user runs it: accuracy and time over 5 seeds, at 2 ranks and at 1."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import NamedTuple

from benchmarks.figure import VITSCALE, Figure, below, run, say, spread, within
from vitscale import units
from vitscale.config.labels import ranks
from vitscale.statistics import median_of, ratio_interval

TARGET_ACCURACY = 0.97
TARGET_S = 180.0
SHORT = ["train.epochs=2", "train.warmup_epochs=1"]
COMMAND = "vitscale train digits"


class Training(NamedTuple):
    """One training."""

    seed: int
    world_size: int
    accuracy: float
    wall_s: float


def measure(short: bool) -> list[Figure]:
    """Ten trainings; the two world sizes alternate."""
    done: list[Training] = []
    with tempfile.TemporaryDirectory() as name:
        for seed in range(2 if short else 5):
            for world_size in (2, 1):
                done.append(_train(Path(name), seed, world_size, SHORT if short else []))
                say(f"  seed {seed}, {world_size} ranks: {units.percent(done[-1].accuracy)}, {done[-1].wall_s:.0f} s")
    _print(done)
    by_size = {size: [one for one in done if one.world_size == size] for size in (2, 1)}
    return [
        *(_accuracy([one.accuracy for one in trainings], size) for size, trainings in by_size.items()),
        _same(*([one.accuracy for one in by_size[size]] for size in (2, 1))),
        below("wall time of digits, 2 ranks", [one.wall_s for one in by_size[2]], TARGET_S, units.seconds, COMMAND),
    ]


def _train(folder: Path, seed: int, world_size: int, more: list[str]) -> Training:
    out = folder / f"seed{seed}-w{world_size}"
    words = [f"measure.seed={seed}", f"world_size={world_size}", *more]
    done = run([VITSCALE, "train", "digits", *words, "--out", str(out)], folder)
    (path,) = out.glob("runs/*/launch0/eval.jsonl")
    last = json.loads(path.read_text().splitlines()[-1])
    return Training(seed, world_size, float(last["test_accuracy"]), done.wall_s)


def _accuracy(values: list[float], world_size: int) -> Figure:
    median, name = median_of(values), f"accuracy of digits, {ranks(world_size, 'cpu')}"
    target = f">= {TARGET_ACCURACY:.0%}"
    text = spread(values, units.percent)
    return Figure(name, units.percent(median), text, target, median >= TARGET_ACCURACY, f"{COMMAND} measure.seed=…")


def _same(two: list[float], one: list[float]) -> Figure:
    """Whether the 95 % interval of the ratio of accuracies holds 1."""
    ratio = ratio_interval(two, one)
    assert ratio.low is not None
    assert ratio.high is not None
    text, same = within(ratio, "{:.4f}".format, len(two)), ratio.low <= 1 <= ratio.high
    return Figure("accuracy of digits, 2 ranks over 1", f"{ratio.median:.4f}", text, "1 within", same, COMMAND)


def _print(done: list[Training]) -> None:
    print("| seed | ranks | accuracy | wall time |")
    print("|---|---|---|---|")
    for one in done:
        print(f"| {one.seed} | {one.world_size} | {units.percent(one.accuracy)} | {one.wall_s:.0f} s |")
    print(flush=True)
