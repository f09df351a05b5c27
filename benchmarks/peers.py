"""vitscale's loop against the loops users would otherwise write: same model, images, batch, precision, threads.

Fresh process starts alternate: of each repetition every peer runs once and vitscale once per world size, with its
engines one after the other in that start: one more launch of each run of the same study. A ratio is a peer's median
step over vitscale's in the same repetition, of the slowest rank each; above 1 vitscale is faster. fp32 is against
fp32; what `engine.fast` chooses stands beside: bf16 (weights, fp32 master copy) where the CPU multiplies it, with the
attention kernel or the allocator that it then chooses, else fp32.

The engine that stands for vitscale is the fastest of the first repetition, which is not in the figures: the choice
would flatter it.

The same steps tell what bf16 gains, how near fp32 comes to the peak of matrix products (1,024 x 1,024, the same
threads, in the same repetition), what a second rank gains, and what ZeRO-1 costs over ZeRO-0.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.figure import ROOT, VITSCALE, Failed, Figure, launch_steps_s, run, say, within
from vitscale.hardware.probe import probe
from vitscale.statistics import interval

COMMAND = "python -m benchmarks peers"
LONGEST_S = 300.0
REPEATS = 5
PEERS = ("deepspeed", "ddp", "accelerate", "timm")
SETTINGS: dict[str, dict[str, Any]] = {
    "ViT-Ti, 32 px": {"model": "vit_tiny_patch16_224", "img_size": 32, "patch_size": 4, "global_batch": 16},
    "ViT-S, 64 px": {"model": "vit_small_patch16_224", "img_size": 64, "patch_size": 8, "global_batch": 8},
    "ViT-Ti, 224 px": {"model": "vit_tiny_patch16_224", "img_size": 224, "patch_size": 16, "global_batch": 8},
}
MATRIX, MATRIX_SIDE = "matrix", 1024
FAST_TARGETS = {"deepspeed": 1.3, "paper": 1.3}
"""How much faster than these loops vitscale has to be with `engine.fast`, in its fastest engine."""
Seen = dict[tuple[str, int], list[float]]
"""Seconds of a step by (who, world size), one per repetition."""
IN_SETTING = {"ViT-Ti, 224 px": ("paper",)}
"""The paper's loop in its own setting, at 224 px; the others in both of theirs."""


def measure(short: bool) -> list[Figure]:
    """Every setting at 1 and 2 ranks."""
    cores = len(probe().cores)
    sizes = [size for size in (1, 2) if size <= cores]
    figures = []
    for name, setting in SETTINGS.items():
        given = {
            **setting,
            "matrix_side": MATRIX_SIDE,
            "threads": max(1, cores // max(sizes)),
            "warmup": 2,
            "steps": 3 if short else 6,
        }
        if name in IN_SETTING:
            given["ours"] = {"engine": "deepspeed", "zero_stage": 0}
        figures += _of_setting(name, given, sizes, IN_SETTING.get(name, PEERS), 1 + (1 if short else REPEATS))
    return figures


def _of_setting(
    name: str, setting: dict[str, Any], sizes: list[int], peers: tuple[str, ...], repeats: int
) -> list[Figure]:
    """All repetitions, then the ratios."""
    seen: Seen = {}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(repeats):
            whose = [*peers, MATRIX, "vitscale"]
            for who in whose if repeat % 2 else whose[::-1]:
                say(f"  {name}, repetition {repeat + 1} of {repeats}: {who}")
                for key, step_s in _taken(who, setting, sizes, Path(folder), repeat).items():
                    seen.setdefault(key, []).append(step_s)
        flop = flop_per_step(Path(folder))
    figures = []
    for size in sizes:
        fp32, bf16 = (fastest(seen, size, precision) for precision in ("fp32", "bf16"))
        fast = bf16 if probe().cpu_bf16 else fp32
        for peer in peers:
            figures.append(
                _ratio(f"{peer}'s loop over {fp32}, {name}, {_ranks(size)}", seen, (peer, size), (fp32, size), 1.0)
            )
            target = FAST_TARGETS.get(peer)
            figures.append(
                _ratio(
                    f"{peer}'s loop over {fast} (fast), {name}, {_ranks(size)}",
                    seen,
                    (peer, size),
                    (fast, size),
                    target,
                )
            )
        if name not in IN_SETTING:
            figures += _of_ours(f"{name}, {_ranks(size)}", seen, size, fp32, bf16, flop)
    if len(sizes) > 1 and name not in IN_SETTING:
        figures += [_second_rank(name, seen, who) for who in (fastest(seen, 1, "fp32"), fastest(seen, 1, "bf16"))]
    return figures


def fastest(seen: Seen, size: int, precision: str) -> str:
    """Which of vitscale's engines stands for it, by the first repetition."""
    ours = [who for who, at in seen if at == size and who.startswith("vitscale") and who.endswith(precision)]
    return min(ours, key=lambda who: seen[who, size][0])


def _of_ours(where: str, seen: Seen, size: int, fp32: str, bf16: str, flop: int) -> Iterator[Figure]:
    """What vitscale's own steps tell at one world size."""
    yield _ratio(f"{fp32} over {bf16}, {where}", seen, (fp32, size), (bf16, size), 1.4)
    peak_s = [flop / size / (2 * MATRIX_SIDE**3) * one for one in seen[MATRIX, size]]
    yield compared(f"share of the matrix peak, {fp32}, {where}", peak_s, seen[fp32, size], 0.65)
    zero = ("vitscale deepspeed zero_stage 0 fp32", "vitscale deepspeed zero_stage 1 fp32")
    target = 1.0 if size == 1 else None  # at two ranks it sends more
    yield _ratio(f"{zero[0]} over ZeRO-1, {where}", seen, (zero[0], size), (zero[1], size), target)


def _second_rank(name: str, seen: Seen, who: str) -> Figure:
    """Efficiency from 1 rank to 2, the global batch the same."""
    halves = [one / 2 for one in seen[who, 1]]
    return compared(f"efficiency of 2 ranks, {who}, {name}", halves, seen[who, 2], 0.95)


def _ratio(what: str, seen: Seen, slow: tuple[str, int], fast: tuple[str, int], target: float | None) -> Figure:
    return compared(f"step of {what}", seen[slow], seen[fast], target)


def compared(what: str, above: list[float], below: list[float], target: float | None, command: str = COMMAND) -> Figure:
    """A ratio, repetition by repetition after the first. A peer is faster only where the whole interval is below 1."""
    found = interval([one / other for one, other in zip(above, below, strict=True)][1:])
    reached = found.high if target == 1.0 else found.median
    met = None if target is None or reached is None else reached >= target
    wanted = "" if target is None else f">= {target:g}x"
    return Figure(what, f"{found.median:.2f}x", within(found, "{:.2f}x".format, len(above) - 1), wanted, met, command)


def _ranks(size: int) -> str:
    return "1 rank" if size == 1 else f"{size} ranks"


def _taken(
    who: str, setting: dict[str, Any], sizes: list[int], folder: Path, repeat: int
) -> dict[tuple[str, int], float]:
    if who == "vitscale":
        return our_steps_s(setting, sizes, folder, repeat)
    return {(who, size): peer_step_s(who, setting, size, folder) for size in sizes}


def our_steps_s(setting: dict[str, Any], sizes: list[int], folder: Path, repeat: int) -> dict[tuple[str, int], float]:
    """One more launch of all its engines and both precisions."""
    words = {
        "model.name": setting["model"], "img_size": setting["img_size"], "patch_size": setting["patch_size"],
        "data.name": "synthetic", "data.images": 2048, "data.flip": "false", "global_batch": setting["global_batch"],
        "engine": "deepspeed,ddp", "zero_stage": "0,1", "precision": "fp32,bf16", **setting.get("ours", {}),
        "world_size": ",".join(map(str, sizes)),
        "protocol": "strong", "optimizer.clip": 0, "engine.fast": "true", "measure.launches": repeat + 1,
        "warmup_steps": setting["warmup"], "steps": setting["steps"],
    }  # fmt: skip
    run([VITSCALE, "run", "quick", *(f"{key}={value}" for key, value in words.items()), "--out", "ours"], folder)
    found = json.loads((folder / "ours" / "analysis.json").read_text())["runs"]
    steps_s = launch_steps_s(folder / "ours")
    whose = {one["run_id"]: (_who(one), one["world_size"]) for one in found}
    taken = {who: steps_s[run_id][repeat] for run_id, who in whose.items() if len(steps_s.get(run_id, [])) > repeat}
    missing = [who for who in whose.values() if who not in taken]
    if missing:
        raise Failed(f"vitscale left runs without a step time: {missing}")
    return taken


def _who(run: dict[str, Any]) -> str:
    stage = "" if run["zero_stage"] is None else f" zero_stage {run['zero_stage']}"
    return f"vitscale {run['engine']}{stage} {run['precision']}"


def flop_per_step(folder: Path) -> int:
    """By the closed form; of the global batch, so that it is the same at every world size."""
    (flop,) = {
        one["estimate"]["flop_per_step"] for one in json.loads((folder / "ours" / "plan.json").read_text())["runs"]
    }
    return int(flop)


def peer_step_s(who: str, setting: dict[str, Any], size: int, folder: Path) -> float:
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
    return max(float(median(json.loads((folder / f"{who}.rank{rank}.json").read_text()))) for rank in range(size))


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
