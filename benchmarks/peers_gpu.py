"""vitscale's loop on one CUDA card against timm's `train.py` and torchvision's reference loop: ViT-B/16, 224 px, bf16.

As in `peers`: fresh process starts alternate, a ratio is of the same repetition, and the engine that stands for
vitscale is that of the first, which does not count. Both sides are timed by CUDA events. vitscale has what
`engine.fast` chooses, bf16 weights with an fp32 master copy and compiled blocks; the peers have bf16 autocast as their
scripts do, timm's once more with `--torchcompile`.

*fed*: each by its own loader, from images in memory. *not fed*: vitscale's steps less their `data_s`; the peers take
one batch, which stays on the card, again and again.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.figure import Figure, say, within
from benchmarks.peers import Seen, compared, fastest, flop_per_step, our_steps_s, peer_step_s
from vitscale.hardware import catalog
from vitscale.hardware.probe import probe
from vitscale.statistics import interval
from vitscale.units import NOT_AVAILABLE, percent

COMMAND = "python -m benchmarks peers_gpu"
REPEATS = 5
PEERS = ("timm", "timm_compiled", "torchvision")
FED, NOT_FED = "fed", "not fed"
IMAGES_PER_S, MFU = 2900.0, 0.45
OURS = {"engine.fast": "true", "precision": "bf16", "engine": "deepspeed,ddp", "zero_stage": 0}
SETTING: dict[str, Any] = {
    "model": "vit_base_patch16_224", "img_size": 224, "patch_size": 16, "global_batch": 256, "images": 1_281_167,
    "device": "cuda", "autocast": True, "warmup": 15, "steps": 40, "ours": {**OURS, "device": "cuda"},
}  # fmt: skip
TRIED: dict[str, Any] = SETTING | {
    "model": "vit_tiny_patch16_224", "img_size": 32, "patch_size": 8, "global_batch": 8, "device": "cpu", "warmup": 1,
    "steps": 2, "workers": 2, "ours": {**OURS, "device": "cpu"},
}  # fmt: skip
"""What `--short` tries where there is no card."""


def measure(short: bool) -> list[Figure]:
    """One rank; without a card every figure is n/a."""
    machine = probe()
    if not machine.gpus:
        if short:
            _taken(TRIED | {"threads": 1}, ("timm", "torchvision"), 1)
        return list(_figures(None, None, None))
    seen, flop = _taken(SETTING | {"threads": len(machine.cores)}, PEERS, 2 if short else 1 + REPEATS)
    device = catalog.match(machine.gpus[0].name)
    return list(_figures(seen, flop, device.peak("bf16") if device else None))


def _taken(setting: dict[str, Any], peers: tuple[str, ...], repeats: int) -> tuple[dict[str, Seen], int]:
    """Seconds of a step by feeding, whose and repetition; and the arithmetic of one, by the closed form."""
    seen: dict[str, Seen] = {FED: {}, NOT_FED: {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for repeat in range(repeats):
            whose = [*peers, "vitscale"]
            for who in whose if repeat % 2 else whose[::-1]:
                say(f"  repetition {repeat + 1} of {repeats}: {who}")
                for feeding, steps_s in _of(who, setting, folder, repeat).items():
                    for key, step_s in steps_s.items():
                        seen[feeding].setdefault(key, []).append(step_s)
        return seen, flop_per_step(folder)


def _of(who: str, setting: dict[str, Any], folder: Path, repeat: int) -> dict[str, dict[tuple[str, int], float]]:
    """One repetition of one loop, fed and not fed: of vitscale the same steps tell both."""
    if who != "vitscale":
        return {
            feeding: {(who, 1): peer_step_s(who, setting | {"feeding": feeding == FED}, 1, folder)}
            for feeding in (FED, NOT_FED)
        }
    fed = our_steps_s(setting, [1], folder, repeat)
    waits_s = _waits_s(folder / "ours", repeat)
    return {FED: fed, NOT_FED: {key: step_s - waits_s[key[0].split()[1]] for key, step_s in fed.items()}}


def _waits_s(results: Path, launch: int) -> dict[str, float]:
    """Engine -> median wait of its steady steps for images, seconds."""
    found = {}
    for path in (results / "runs").glob(f"*/launch{launch}/steps.*.jsonl"):
        steps = [json.loads(line) for line in path.read_text().splitlines()]
        engine = json.loads((path.parent / "run.json").read_text())["engine"]
        found[engine] = median(step["data_s"] for step in steps if step["window"] == "steady")
    return found


def _figures(seen: dict[str, Seen] | None, flop: int | None, peak: float | None) -> Iterator[Figure]:
    """Every row, n/a where nothing was seen."""
    images = SETTING["global_batch"]
    what = "ViT-B/16, 224 px, bf16, 1 GPU"
    for feeding in (FED, NOT_FED):
        steps = seen[feeding] if seen else None
        ours = steps[fastest(seen[FED], 1, "bf16"), 1] if seen and steps else None
        rates = [images / one for one in ours[1:]] if ours else None
        yield _reached(f"images/s, {what}, {feeding}", rates, "{:,.0f}".format, IMAGES_PER_S)
        used = [flop / one / peak for one in ours[1:]] if ours and flop and peak else None
        told = "the peak of this card is not known" if ours else ""
        yield _reached(f"MFU, {what}, {feeding}", used, percent, MFU, told)
        for peer in PEERS:
            name = f"step of {peer}'s loop over vitscale's, {what}, {feeding}"
            if steps and ours:
                yield compared(name, steps[peer, 1], ours, 1.0, COMMAND)
            else:
                yield _not_measured(name, ">= 1x")


def _reached(
    name: str, values: list[float] | None, text: Callable[[float], str], least: float, why: str = ""
) -> Figure:
    """A figure whose median has to reach a least one."""
    target = f">= {text(least)}"
    if values is None:
        return _not_measured(name, target, why)
    found = interval(values)
    return Figure(name, text(found.median), within(found, text, len(values)), target, found.median >= least, COMMAND)


def _not_measured(name: str, target: str, why: str = "") -> Figure:
    return Figure(name, NOT_AVAILABLE, "", target, None, COMMAND, f"not measured: {why or 'no CUDA device'}")
