"""What each knob of `[engine]` does to the step, one by one, on a ViT-Ti at 32 px: `study/fast.py` chooses by these.

A study for each: the values take turns in each process start, and a ratio is between two of the same start. Above 1 the
value is faster than what stands where the study says nothing.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.figure import VITSCALE, Figure, launch_steps_s, run, say, within
from vitscale.statistics import interval
from vitscale.units import NOT_AVAILABLE

COMMAND = "python -m benchmarks knobs"
LAUNCHES = 4
MODEL = {
    "model.name": "vit_tiny_patch16_224", "img_size": 32, "patch_size": 4, "data.name": "synthetic",
    "data.images": 2048, "data.flip": "false", "protocol": "strong", "global_batch": 32, "optimizer.clip": 0,
    "warmup_steps": 3, "steps": 8,
}  # fmt: skip


ZERO = "deepspeed.zero_optimization"


class Knob(NamedTuple):
    """A key, what it is where a study is silent, and the other values."""

    key: str
    default: str
    values: tuple[str, ...]
    ranks: int = 1
    engine: str = "ddp"
    zero_stage: int = 0


KNOBS = (
    Knob("precision", "fp32", ("bf16", "bf16_autocast")),
    Knob("engine.compile", "false", ("true",)),
    Knob("engine.sdpa", "auto", ("math", "flash")),
    Knob("engine.channels_last", "false", ("true",)),
    Knob("engine.optimizer_impl", "auto", ("fused", "foreach", "for")),
    Knob("engine.allocator", "libc", ("tcmalloc",)),
    Knob("engine.loader_threads", "0", ("1",)),
    Knob("engine.gradient_as_bucket_view", "true", ("false",), ranks=2),
    Knob("engine.static_graph", "false", ("true",), ranks=2),
    Knob("engine.bucket_mb", "25", ("5", "100"), ranks=2),
    Knob("engine.ddp_hook", "none", ("bf16",), ranks=2),
    Knob("engine.bind_cores", "true", ("false",), ranks=2),
    Knob("engine.overlap_reduce", "false", ("true",), ranks=2, engine="deepspeed"),
    Knob(f"{ZERO}.overlap_comm", "false", ("true",), ranks=2, engine="deepspeed", zero_stage=1),
    Knob(f"{ZERO}.reduce_bucket_size", "500000000", ("1000000",), ranks=2, engine="deepspeed", zero_stage=1),
    Knob(f"{ZERO}.stage3_prefetch_bucket_size", "50000000", ("100000",), ranks=2, engine="deepspeed", zero_stage=3),
    Knob(f"{ZERO}.stage3_param_persistence_threshold", "100000", ("0",), ranks=2, engine="deepspeed", zero_stage=3),
)


def measure(short: bool) -> list[Figure]:
    """Each knob on as many ranks as it needs, a thread each."""
    return [figure for knob in KNOBS for figure in _of_knob(knob, 1 if short else LAUNCHES)]


def _of_knob(knob: Knob, launches: int) -> Iterator[Figure]:
    say(f"  {knob.key}")
    words: dict[str, Any] = {
        **MODEL, "engine": knob.engine, "zero_stage": knob.zero_stage, "world_size": knob.ranks,
        "measure.launches": launches,
        knob.key: ",".join((knob.default, *knob.values)),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run([VITSCALE, "run", "quick", *(f"{key}={value}" for key, value in words.items()), "--out", "out"], folder)
        plan = json.loads((folder / "out" / "plan.json").read_text())
        steps_s = launch_steps_s(folder / "out")
    if plan["skipped"]:  # then which of the runs has which value is not told by their order
        yield Figure(f"step with {knob.key}", NOT_AVAILABLE, "", "", None, COMMAND, str(plan["skipped"][0]))
        return
    by_value = dict(zip((knob.default, *knob.values), (steps_s[one["run_id"]] for one in plan["runs"]), strict=True))
    for value in knob.values:
        found = interval([old / new for old, new in zip(by_value[knob.default], by_value[value], strict=True)])
        yield Figure(
            f"step with {knob.key} {knob.default} over {value}, {knob.ranks} rank{'s' * (knob.ranks > 1)}",
            f"{found.median:.3f}x",
            within(found, "{:.3f}x".format, launches),
            "",
            None,
            COMMAND,
        )
