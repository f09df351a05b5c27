"""Training with shared tokens is training: two ranks that share every image follow one that has it whole."""

import json
import math

import numpy as np
import pytest
from ranks import runs, serve, steps
from test_parity import ADAMW, BATCH, BOUND, SGD, STEPS, WARMUP, gap, reference

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

SHARED = ("world_size=2", "sequence_parallel=2")
CASES = {
    "adamw": (ADAMW, "zero_stage=2"),
    "sgd": (SGD, "zero_stage=0,1,2,3"),
    "sgd, two micro-steps": (SGD, "zero_stage=0,3", "grad_accum=2"),
    "sgd, torch's engines": (SGD, "engine=ddp,fsdp", "grad_accum=2"),
    "bf16": (ADAMW, "zero_stage=1", "precision=bf16"),
}
# Drop path and mixup are drawn by the group, so they too are those of one rank.
TRAINED = (
    "protocol=strong", "model.name=test_vit", "global_batch=32", "data.images=128", "train.max_steps=8",
    "train.eval_epochs=1", "mixup=0.2", "drop_path=0.2", "crop=1", "zero_stage=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def shared(store, tmp_path_factory):
    """case -> engine and ZeRO stage -> losses, and the folder of a training; one process start for all."""
    specs = []
    for case, (optimizer, *words) in CASES.items():
        keys = [f"optimizer.{key}={value}" for key, value in optimizer.items()]
        size = (f"global_batch={BATCH}", f"warmup_steps={WARMUP}", f"steps={STEPS - WARMUP}")
        found = runs(store, *SHARED, *size, *keys, *words)
        specs += [(case, spec) for spec in found]
    specs.append(("training", *runs(store, *SHARED, *TRAINED)))
    end, folders = serve(store, tmp_path_factory.mktemp("shared"), [spec for _, spec in specs])
    assert end.status == "ok", end.reason
    losses = {case: {} for case in CASES}
    for (case, spec), folder in zip(specs[:-1], folders, strict=False):
        assert (spec.world_size, spec.data_parallel, spec.sequence_parallel) == (2, 1, 2)
        losses[case][spec.engine, spec.zero_stage] = np.mean(
            [[line["loss"] for line in one] for one in steps(folder).values()], 0
        )
    return losses, folders[-1]


def test_the_idle_link_is_timed_with_the_exchanges_of_tokens_too(shared):
    (path,) = shared[1].parents[2].glob("rounds/*/links.json")
    links = json.loads(path.read_text())
    assert "all_to_all" in {one["operation"] for one in links["timings"]} or links["left_out"]


@pytest.mark.parametrize("case", [case for case in CASES if case != "bf16"])
def test_losses_are_those_of_a_plain_loop(shared, store, case):
    wanted = reference(store, CASES[case][0])
    gaps = {stage: gap(losses, wanted) for stage, losses in shared[0][case].items()}
    assert max(gaps.values()) < BOUND, gaps


def test_bf16_learns_as_fp32_does(shared, store):
    wanted = reference(store, ADAMW)
    for stage, losses in shared[0]["bf16"].items():
        assert all(math.isfinite(loss) for loss in losses)
        assert 1e-4 < gap(losses, wanted) < 0.05, stage


def test_training_and_evaluation_are_those_of_one_rank(shared, store, tmp_path):
    end, (alone,) = serve(store, tmp_path, runs(store, "world_size=1", *TRAINED))
    assert end.status == "ok", end.reason
    (wanted,) = steps(alone).values()
    for lines in steps(shared[1]).values():
        for line, other in zip(lines, wanted, strict=True):
            assert line["loss"] == pytest.approx(other["loss"], rel=1e-5)
    found, expected = (
        [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()] for folder in (shared[1], alone)
    )
    assert len(found) == len(expected) == 2
    for one, other in zip(found, expected, strict=True):
        assert one["test_images"] == other["test_images"] == 360
        assert one["test_loss"] == pytest.approx(other["test_loss"], rel=1e-5)
        assert one["test_accuracy"] == pytest.approx(other["test_accuracy"], abs=1 / 360)
