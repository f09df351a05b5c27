"""vitscale's loop against the loops users would otherwise write: same model, images, batch, precision, threads.

Fresh process starts alternate: of each repetition every peer runs once and vitscale once per world size, with its
engines one after the other in that start. A ratio is a peer's median step over vitscale's in the same repetition, of
the slowest rank each; above 1 vitscale is faster. fp32 is against fp32; bf16 (weights, fp32 master copy) stands beside.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.figure import ROOT, VITSCALE, Failed, Figure, run, say, within
from vitscale.hardware.probe import probe
from vitscale.statistics import interval

COMMAND = "python -m benchmarks peers"
LONGEST_S = 300.0
REPEATS = 5
PEERS = ("deepspeed", "ddp", "accelerate", "timm")
SETTINGS: dict[str, dict[str, Any]] = {
    "ViT-Ti, 32 px": {"model": "vit_tiny_patch16_224", "img_size": 32, "patch_size": 4, "global_batch": 32},
    "ViT-S, 64 px": {"model": "vit_small_patch16_224", "img_size": 64, "patch_size": 8, "global_batch": 16},
    "ViT-Ti, 224 px": {"model": "vit_tiny_patch16_224", "img_size": 224, "patch_size": 16, "global_batch": 8},
}
IN_SETTING = {"ViT-Ti, 224 px": ("paper",)}
"""The paper's loop in its own setting, at 224 px; the others in both of theirs."""


def measure(short: bool) -> list[Figure]:
    """Every setting at 1 and 2 ranks."""
    cores = len(probe().cores)
    sizes = [size for size in (1, 2) if size <= cores]
    figures = []
    for name, setting in SETTINGS.items():
        given = {**setting, "threads": max(1, cores // max(sizes)), "warmup": 3, "steps": 3 if short else 12}
        figures += _of_setting(name, given, sizes, IN_SETTING.get(name, PEERS), 1 if short else REPEATS)
    return figures


def _of_setting(
    name: str, setting: dict[str, Any], sizes: list[int], peers: tuple[str, ...], repeats: int
) -> list[Figure]:
    """Seconds of a step by (who, world size), one per repetition; then the ratios."""
    seen: dict[tuple[str, int], list[float]] = {}
    for repeat in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            whose = [*peers, "vitscale"]
            for who in whose if repeat % 2 else whose[::-1]:
                say(f"  {name}, repetition {repeat + 1} of {repeats}: {who}")
                for key, step_s in _taken(who, setting, sizes, Path(folder)).items():
                    seen.setdefault(key, []).append(step_s)
    figures = []
    for size in sizes:
        ours = {who: steps_s for (who, at), steps_s in seen.items() if at == size and who.startswith("vitscale")}
        best = min((who for who in ours if who.endswith("fp32")), key=lambda who: median(ours[who]))
        for peer in peers:
            figures += [_ratio(name, size, peer, seen[peer, size], who, ours[who], who == best) for who in ours]
    return figures


def _ratio(name: str, size: int, peer: str, theirs: list[float], who: str, ours: list[float], judged: bool) -> Figure:
    found = interval([one / other for one, other in zip(theirs, ours, strict=True)])
    met = None if not judged or found.high is None else found.high >= 1
    ranks = "1 rank" if size == 1 else f"{size} ranks"
    return Figure(
        f"step of {peer}'s loop over {who}'s, {name}, {ranks}",
        f"{found.median:.2f}x",
        within(found, "{:.2f}x".format, len(theirs)),
        "1x or more" if judged else "",
        met,
        COMMAND,
    )


def _taken(who: str, setting: dict[str, Any], sizes: list[int], folder: Path) -> dict[tuple[str, int], float]:
    if who == "vitscale":
        return _vitscale(setting, sizes, folder)
    return {(who, size): _peer(who, setting, size, folder) for size in sizes}


def _vitscale(setting: dict[str, Any], sizes: list[int], folder: Path) -> dict[tuple[str, int], float]:
    """One `vitscale run` of all its engines and both precisions."""
    words = {
        "model.name": setting["model"], "img_size": setting["img_size"], "patch_size": setting["patch_size"],
        "data.name": "synthetic", "data.images": 2048, "data.flip": "false", "global_batch": setting["global_batch"],
        "engine": "deepspeed,ddp", "precision": "fp32,bf16", "world_size": ",".join(map(str, sizes)),
        "protocol": "strong", "optimizer.clip": 0, "measure.launches": 1, "warmup_steps": setting["warmup"],
        "steps": setting["steps"],
    }  # fmt: skip
    run([VITSCALE, "run", "quick", *(f"{key}={value}" for key, value in words.items()), "--out", "ours"], folder)
    runs = json.loads((folder / "ours" / "analysis.json").read_text())["runs"]
    missing = [one["run_id"] for one in runs if one["step_s"] is None]
    if missing:
        raise Failed(f"vitscale left runs without a step time: {', '.join(missing)}")
    return {
        (f"vitscale {one['engine']} {one['precision']}", one["world_size"]): one["step_s"]["median"] for one in runs
    }


def _peer(who: str, setting: dict[str, Any], size: int, folder: Path) -> float:
    """Median step of the slowest rank of one process start. Nobody binds these to cores: loader workers may use any."""
    path = folder / f"setting{size}.json"
    path.write_text(json.dumps({**setting, "micro_batch": setting["global_batch"] // size}))
    ranks = [_start(who, path, rank, size, setting["threads"]) for rank in range(size)]
    deadline = time.monotonic() + LONGEST_S
    try:
        codes = [rank.wait(max(1.0, deadline - time.monotonic())) for rank in ranks]
    except subprocess.TimeoutExpired:
        raise Failed(f"{who}'s loop took more than {LONGEST_S:.0f} s") from None
    finally:
        for rank in ranks:
            rank.kill()
    if any(codes):
        raise Failed(f"{who}'s loop failed:\n{(folder / 'log').read_text()[-2000:]}")
    return max(median(json.loads((folder / f"{who}.rank{rank}.json").read_text())) for rank in range(size))


def _start(who: str, path: Path, rank: int, size: int, threads: int) -> subprocess.Popen[bytes]:
    own = {
        "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": 29_400 + os.getpid() % 500, "OMP_NUM_THREADS": threads, "GLOO_SOCKET_IFNAME": "lo",
        "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    with (path.parent / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.peer_rank", who, str(path)],
            cwd=ROOT,
            env=os.environ | {key: str(value) for key, value in own.items()},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
