"""Write the synthetic study of `tests/golden/study` with the real schema and writer, or pieces of one for other tests.

    python tests/golden/make_study.py         # replaces tests/golden/study and tests/golden/analysis.json

No figure here was measured. Times are rounded to nanoseconds, so that every machine writes the same bytes.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vitscale.config.runspec import DataSpec, MeasureSpec, ModelSpec, RunSpec
from vitscale.config.study import OptimizerSection
from vitscale.records.collectives import COLLECTIVES, CollectiveRecord
from vitscale.records.samples import Sample, SampleWriter
from vitscale.records.schema import Device, Layout, Manifest, Memory, StepRecord, Times
from vitscale.records.writer import RUN, StepWriter, make_folder, write_json, write_manifest

HERE = Path(__file__).parent
PARTS = {"data_s": 0.04, "forward_s": 0.31, "backward_s": 0.47, "optimizer_s": 0.12}

StepTime = Callable[[int, int], float]
Parts = dict[str, float | None]
"""Field of a step line -> share of the step; None is not measured."""


def make_spec(world_size: int = 1, protocol: str = "strong", **changes: Any) -> RunSpec:
    """RunSpec like that of the study `quick`; `changes` are fields."""
    strong = protocol == "strong"
    fields: dict[str, Any] = {
        "protocol": protocol,
        "model": ModelSpec(name="vit_tiny_patch16_224", img_size=32, patch_size=4, num_classes=10),
        "data": DataSpec(
            name="digits",
            fingerprint="0123456789abcdef",
            images=1437 if strong else 718 * world_size,
            images_per_device=None if strong else 718,
        ),
        "world_size": world_size,
        "ranks_per_node": world_size,
        "data_parallel": world_size,
        "engine": "deepspeed",
        "zero_stage": 0,
        "precision": "fp32",
        "device": "cpu",
        "micro_batch": 64 // world_size if strong else 32,
        "grad_accum": 1,
        "global_batch": 64 if strong else 32 * world_size,
        "solved": "micro_batch" if strong else "global_batch",
        "optimizer": OptimizerSection(),
        "measure": MeasureSpec(warmup_steps=2, steps=10, seconds=None, seed=0),
        "threads_per_rank": 1,
    }
    return RunSpec(**{**fields, **changes})


def write_launch(
    root: Path,
    spec: RunSpec,
    launch: int = 0,
    step_s: float | StepTime = 0.1,
    *,
    status: str | None = "ok",
    reason: str | None = None,
    source: str = "measured",
    device: str = "Example CPU",
    warmup: int = 2,
    steps: int = 10,
    parts: Parts | Callable[[int], Parts] = PARTS,
    ranks: int | None = None,
    one_file: bool = False,
    accuracy: float | None = None,
    evaluations: Sequence[dict[str, Any]] = (),
    notes: dict[str, Any] | None = None,
    skipped: range = range(0),
    samples: Sequence[Sample] = (),
    memory: Memory | None = None,
    collectives: Sequence[CollectiveRecord] = (),
) -> Path:
    """Write one launch folder; `status` None leaves it without a manifest. `step_s` may be a function of rank, step,
    and `parts` of rank."""
    folder = make_folder(root / "runs" / spec.run_id / f"launch{launch}")
    write_json(folder / RUN, spec.model_dump(mode="json"))
    time = step_s if callable(step_s) else lambda rank, step: step_s
    for rank in range(spec.world_size if ranks is None else ranks):
        writer = StepWriter(folder, 0 if one_file else rank)
        split = parts(rank) if callable(parts) else parts
        records = (_record(spec, rank, step, warmup, time(rank, step), split) for step in range(warmup + steps))
        writer.write(one._replace(window="skipped") if one.step in skipped else one for one in records)
        writer.close()
    lines = list(evaluations)
    if accuracy is not None:
        lines += [{"step": step, "test_accuracy": value} for step, value in ((5, accuracy / 2), (10, accuracy))]
    if lines:
        (folder / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if collectives:
        (folder / COLLECTIVES).write_text("".join(one.model_dump_json() + "\n" for one in collectives))
    for node in sorted({sample.node for sample in samples}):
        sampled = SampleWriter(folder, node)
        sampled.write(sample for sample in samples if sample.node == node)
        sampled.close()
    if status is not None:
        manifest = _manifest(spec, launch, status, reason, source, device, warmup + steps, notes)
        devices = tuple(one.model_copy(update={"memory": memory}) for one in manifest.devices)
        write_manifest(folder, manifest.model_copy(update={"devices": devices}))
    return folder


def _record(spec: RunSpec, rank: int, step: int, warmup: int, seconds: float, parts: Parts) -> StepRecord:
    vary = 1 + 0.02 * ((7 * step + 3 * rank) % 5 - 2)
    split = {name: None if share is None else round(seconds * share * vary, 9) for name, share in parts.items()}
    return StepRecord(
        step=step,
        window="warmup" if step < warmup else "steady",
        rank=rank,
        loss=round(2.3 / (1 + 0.05 * step) + 0.01 * rank, 6),
        images=spec.images_counted(rank),
        step_s=round(seconds, 9),
        **dict.fromkeys((*PARTS, "comm_exposed_s", "wait_s")) | split,
    )


def _manifest(
    spec: RunSpec,
    launch: int,
    status: str,
    reason: str | None,
    source: str,
    device: str,
    steps: int,
    notes: dict[str, Any] | None,
) -> Manifest:
    return Manifest(
        run_id=spec.run_id,
        launch=launch,
        round=f"{launch}-w{spec.world_size}",
        status=status,
        reason=reason,
        source=source,
        started=f"2026-01-01T00:0{launch % 10}:00Z",
        versions={"python": "3.11.7", "torch": "2.10.0", "deepspeed": "0.18.3"},
        devices=tuple(
            Device(rank=rank, node=0, local_rank=rank, kind="cpu", name=device, memory_peak_bytes=(400 + rank) * 2**20)
            for rank in range(spec.world_size)
        ),
        layout=Layout(world_size=spec.world_size, nodes=1, ranks_per_node=spec.world_size, backend="gloo"),
        times=Times(setup_s=1.5),
        steps=steps,
        notes=notes or {},
    )


def write_study(root: Path, question: str = "", plan: dict[str, Any] | None = None, **measure: Any) -> Path:
    """Write `resolved.json` and, where given, `plan.json`."""
    make_folder(root)
    resolved = {"schema_version": 1, "name": "golden", "question": question, "measure": {"launches": 3, **measure}}
    write_json(root / "resolved.json", resolved)
    if plan is not None:
        write_json(root / "plan.json", {"schema_version": 1, "runs": [], "skipped": [], "notes": [], **plan})
    return root


def noisy(rng: random.Random, base_s: float, parts: float = 0.02) -> StepTime:
    """Step times around one of this launch, the higher ranks now and then slower."""
    level = base_s * (1 + parts * (rng.random() - 0.5))
    return lambda rank, step: level * (1 + 0.1 * rng.random() ** 4) * (3.0 if step == 0 else 1.0)


ALONE: Parts = {
    "data_s": 0.01,
    "forward_s": 0.31,
    "backward_s": 0.61,
    "optimizer_s": 0.06,
    "comm_exposed_s": 0.0,
    "wait_s": 0.0,
    "comm_s": 0.0,
    "comm_overlapped_s": 0.0,
    "launch_gap_s": 0.0,
    "late_s": 0.0,
}
"""Of a rank that is the only one."""


def _timed_apart(rank: int) -> Parts:
    """Communication and waiting apart from computing: rank 1 computes longer, and rank 0 waits for it."""
    late = 0.04 * rank
    return {
        "data_s": 0.01,
        "forward_s": 0.29 + late,
        "backward_s": 0.54,
        "optimizer_s": 0.05,
        "comm_exposed_s": 0.06,
        "wait_s": 0.045 - late,
        "comm_s": 0.06,
        "comm_overlapped_s": 0.0,
        "launch_gap_s": 0.0,
        "late_s": 0.005 + late,
    }


SENT = (
    CollectiveRecord(
        operation="all_reduce",
        group_size=2,
        calls_per_step=1,
        bytes_per_step=21_370_152,
        wire_s_per_step=0.0032,
        algbw_bytes_per_s=6.678e9,
        busbw_bytes_per_s=6.678e9,
    ),
)


def golden_study(root: Path) -> None:
    """Strong and weak, two ZeRO stages, one run on more ranks than cores, one out of memory, one launch cut off."""
    rng = random.Random(20260101)
    runs = [
        (make_spec(1), 0.100),
        (make_spec(2), 0.053),
        (make_spec(4, oversubscribed=True), 0.051),
        (make_spec(1, zero_stage=1), 0.104),
        (make_spec(2, zero_stage=1), 0.054),
        (make_spec(1, "weak"), 0.052),
        (make_spec(2, "weak"), 0.055),
    ]
    lost = make_spec(4, zero_stage=1, oversubscribed=True)
    never = make_spec(4, "weak", oversubscribed=True)
    specs = [*(spec for spec, _ in runs), lost, never]
    planned = [{"run_id": one.run_id, "series": one.series, "spec": one.model_dump(mode="json")} for one in specs]
    skipped = [{"label": "strong, zero_stage 1, 3 processes", "reason": "global_batch 64 is not divisible by 3"}]
    write_study(root, "Does a second process help a tiny ViT?", {"runs": planned, "skipped": skipped})
    for launch in range(3):
        for spec, base_s in runs:
            accuracy = 0.9 + launch / 100 if spec.run_id == runs[0][0].run_id else None
            parts, lines = (_timed_apart, SENT) if (spec.world_size, spec.protocol) == (2, "strong") else (PARTS, ())
            parts = ALONE if (spec.world_size, spec.protocol) == (1, "strong") else parts
            write_launch(root, spec, launch, noisy(rng, base_s), parts=parts, accuracy=accuracy, collectives=lines)
    write_launch(root, lost, 0, steps=0, warmup=0, status="oom", reason="rank 2 asked for 64.0 GiB of 62.0 GiB")
    cut = write_launch(root, runs[1][0], 3, noisy(rng, 0.053), status=None) / "steps.rank001.jsonl"
    cut.write_bytes(cut.read_bytes()[:-100])


if __name__ == "__main__":
    from vitscale.analysis.analyse import analyse, write_analysis

    shutil.rmtree(HERE / "study", ignore_errors=True)
    golden_study(HERE / "study")
    write_analysis(HERE, analyse(HERE / "study"))
