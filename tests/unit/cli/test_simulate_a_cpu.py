"""From one's own CPU runs to more ranks than there are: `predict` fits, the launcher `simulate` goes on from it."""

import json
from statistics import fmean

import pytest


@pytest.fixture
def measured(vitscale, make, tmp_path):
    """A results folder of CPU runs of 1 and 2 ranks on one host, the second 8 % slower, with its calibration."""
    root = make.write_study(tmp_path / "measured")
    for size, step_s in ((1, 0.1), (2, 0.108)):
        spec = make.make_spec(size, "weak", micro_batch=32, global_batch=32 * size)
        for launch in range(3):
            make.write_launch(root, spec, launch, step_s * (1 + launch / 1000))
    assert vitscale("predict", root).code == 0
    return root


ASKED = ("run", "quick", "--launcher", "simulate", "protocol=weak", "data.name=synthetic", "data.images_per_device=64")


def steps_of(folder):
    """World size -> step lines."""
    found = {}
    for run in folder.glob("runs/*/launch0"):
        size = json.loads((run / "run.json").read_text())["world_size"]
        lines = [line for path in sorted(run.glob("steps.*")) for line in path.read_text().splitlines()]
        found[size] = [json.loads(line) for line in lines]
    return found


def test_cpu_runs_of_1_and_2_ranks_are_simulated_at_64_and_waiting_grows(vitscale, measured, tmp_path):
    sizes = (1, 2, 8, 64)
    ran = vitscale(
        *ASKED, f"hardware.calibration={measured}", f"world_size={','.join(map(str, sizes))}", "--out", tmp_path / "out"
    )
    assert ran.code == 0, ran.err
    steps = steps_of(tmp_path / "out")
    assert {line["rank"] for line in steps[64]} == set(range(64))
    waits = [fmean(line["wait_s"] for line in steps[size]) for size in sizes]
    assert waits[0] == 0
    assert waits == sorted(set(waits))
    assert steps[1][0]["step_s"] == pytest.approx(0.1, rel=0.05)
    assert steps[2][0]["step_s"] == pytest.approx(0.108, rel=0.05)
    assert "CPU of the calibration, not for this machine" in ran.err + ran.out


def test_a_simulated_cpu_is_no_gpu_and_its_memory_is_not_known(vitscale, measured, tmp_path):
    out = tmp_path / "out"
    asked = (*ASKED, f"hardware.calibration={measured}", "hardware.name=cpu", "world_size=64")
    assert vitscale(*asked, "--out", out).code == 0
    manifest = json.loads(next(out.glob("runs/*/launch0/manifest.json")).read_text())
    assert {(one["kind"], one["memory_bytes"]) for one in manifest["devices"]} == {("cpu", None)}
    # Nodes as full as those that were measured.
    assert (manifest["layout"]["nodes"], manifest["layout"]["ranks_per_node"]) == (32, 2)
    assert any("no run across nodes was measured" in line for line in manifest["notes"]["assumptions"])
    assert any("32 times the largest measured" in line for line in manifest["notes"]["assumptions"])
    spec = json.loads(next(out.glob("runs/*/launch0/run.json")).read_text())
    assert (spec["threads_per_rank"], spec["oversubscribed"]) == (None, False)


def test_a_training_has_its_checkpoints_and_failures(vitscale, measured, tmp_path):
    asked = (
        *ASKED,
        f"hardware.calibration={measured}",
        "world_size=2,64",
        "train.epochs=50",
        "optimizer.lr_policy=none",
    )
    assert vitscale(*asked, "--out", tmp_path / "out").code == 0
    manifests = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("runs/*/launch0/manifest.json")]
    told = {one["layout"]["world_size"]: one["notes"]["training"] for one in manifests}
    assert told[64]["mtbf_s"] == pytest.approx(told[2]["mtbf_s"] / 32)
    assert all(one["wall_s"] > one["steps_s"] > 0 for one in told.values())
    assert all("failures: a device" in one["notes"]["assumptions"][-1] for one in manifests)


def test_the_plan_is_for_it_too(vitscale, measured):
    words = ("plan", "quick", "protocol=weak", "data.name=synthetic", f"hardware.calibration={measured}")
    ran = vitscale(*words, "world_size=64")
    assert ran.code == 0, ran.err
    assert "for CPU of the calibration, not for this machine" in ran.out
    assert "32 times the largest measured world size" in ran.out


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        (("hardware.name=cpu",), "no data sheet has a CPU's figures", "hardware.calibration="),
        ((), "`hardware.name` or `hardware.calibration`", "h100"),
        (("hardware.calibration={}", "hardware.name=h100"), "no series of vit_tiny_patch16_224", "cpu"),
        (("hardware.calibration={}", "axes.device=cuda"), "the calibration is of a CPU", "device=cpu"),
        (("hardware.calibration={}", "precision=bf16"), "no series of vit_tiny_patch16_224", "fp32"),
    ],
)
def test_what_a_cpu_cannot_be_simulated_by_is_refused(vitscale, measured, tmp_path, words, error, hint):
    ran = vitscale(*ASKED, *(word.format(measured) for word in words), "--out", tmp_path / "out")
    assert ran.code in (2, 3)
    assert error in ran.error
    assert hint in ran.hint
    assert not (tmp_path / "out").exists()


def test_ranks_that_share_images_have_no_time_of_those_that_do_not(vitscale, measured, tmp_path):
    asked = (*ASKED, f"hardware.calibration={measured}", "world_size=4", "sequence_parallel=2", "num_heads=4")
    ran = vitscale(*asked, "--out", tmp_path / "out")
    assert ran.code != 0
    assert "sequence_parallel" in ran.err
