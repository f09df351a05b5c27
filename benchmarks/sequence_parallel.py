"""Tokens shared by two ranks, beside DeepSpeed's wrapper for ViT attention: memory, time, and errors of gradients.

`deepspeed.sequence.UlyssesSPViTAttention` gathers all tokens before the attention and computes all heads on every rank.
Both are put into the same ViT-S of two blocks, with the same tokens on each rank outside attention.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.figure import ROOT, Failed, Figure, within
from vitscale.statistics import interval

RANKS = 2
LONGEST_S = 600.0
COMMAND = "python -m benchmarks sequence_parallel"
GRADIENT_BOUND = 1e-5
KEPT_SHARE = 0.57
"""17/16 of a half for the blocks, and the whole image."""


def measure(short: bool) -> list[Figure]:
    """One image of 512 px, 1,024 tokens; 10 turns of each way."""
    img_size, turns = (128, 2) if short else (512, 10)
    with tempfile.TemporaryDirectory() as folder:
        seen = _seen(Path(folder), img_size, turns)
    kept, gaps, seconds = seen["kept_bytes"], seen["gaps"], seen["seconds"]
    figures = []
    for way in ("ours", "deepspeed"):
        own, ratio = way == "ours", kept[way] / kept["whole"]
        what = "our" if own else "DeepSpeed's"
        target = f"< {KEPT_SHARE:.0%}" if own else ""
        name = f"kept for backward with {what} sharing, of the whole model's"
        figures.append(Figure(name, f"{ratio:.1%}", "", target, ratio < KEPT_SHARE if own else None, COMMAND))
        target = f"< {GRADIENT_BOUND:g}" if own else ""
        name = f"largest error of a gradient with {what} sharing, of its norm"
        met = gaps[way] < GRADIENT_BOUND if own else None
        figures.append(Figure(name, f"{gaps[way]:.1e}", "", target, met, COMMAND))
    for other, what in (("whole", "the whole model on one rank"), ("deepspeed", "DeepSpeed's sharing")):
        ratios = [ours / one for ours, one in zip(seconds["ours"], seconds[other], strict=True)]
        ratio = interval(ratios)
        text = within(ratio, "{:.2f}".format, len(ratios))
        name = f"forward and backward with our sharing, over {what}"
        figures.append(Figure(name, f"{ratio.median:.2f}", text, "< 1", ratio.median < 1, COMMAND))
    return figures


def _seen(folder: Path, img_size: int, turns: int) -> dict[str, Any]:
    """Start the ranks of `sequence_rank`, wait for them, and read what rank 0 left."""
    out = folder / "seen.json"
    ranks: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(RANKS):
            ranks.append(_start(folder, rank, [str(out), str(img_size), str(turns)]))  # noqa: PERF401
        codes = [rank.wait(timeout=LONGEST_S) for rank in ranks]
    finally:
        for process in ranks:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
    if any(codes):
        raise Failed(f"a rank failed:\n{(folder / 'log').read_text()[-2000:]}")
    seen: dict[str, Any] = json.loads(out.read_text())
    return seen


def _start(folder: Path, rank: int, given: list[str]) -> subprocess.Popen[bytes]:
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "LOCAL_WORLD_SIZE": RANKS, "OMP_NUM_THREADS": 1}
    named = {"VITSCALE_STORE": str(folder / "store"), "GLOO_SOCKET_IFNAME": "lo"}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.sequence_rank", *given],
            cwd=ROOT,
            env=os.environ | {key: str(value) for key, value in own.items()} | named,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
