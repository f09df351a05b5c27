"""Model FLOP utilisation: exact FLOP over a peak that is known, else null with the reason."""

import json

import pytest

from vitscale.analysis.analyse import analyse
from vitscale.cost.models import shape
from vitscale.cost.vit import training_flop

FLOP = training_flop(shape("vit_tiny_patch16_224", img_size=32, patch_size=4, num_classes=10))


@pytest.fixture
def root(make, tmp_path):
    return make.write_study(tmp_path / "study")


def only(root):
    (run,) = analyse(root).analysis.runs
    return run


def test_of_a_known_device_the_peak_is_its_makers(make, root):
    for launch, step_s in enumerate((0.010, 0.011, 0.012)):
        make.write_launch(root, make.make_spec(2, precision="bf16"), launch, step_s, device="NVIDIA L4")
    run = only(root)
    assert run.mfu.median == pytest.approx(64 / 0.011 * FLOP / (2 * 121e12))
    assert run.mfu.low < run.mfu.median < run.mfu.high
    assert run.mfu_reason.startswith("of 121 TFLOP/s dense bf16 a device (")


def test_accumulation_and_the_number_of_ranks_change_nothing(make, root):
    split = make.make_spec(2, micro_batch=8, grad_accum=4)
    make.write_launch(root, split, 0, 0.01, device="NVIDIA L4")
    make.write_launch(root, make.make_spec(1), 0, 0.02, device="NVIDIA L4")
    first, second = analyse(root).analysis.runs
    assert first.mfu.median == pytest.approx(second.mfu.median)


def test_an_unknown_device_has_none_and_why(make, root):
    make.write_launch(root, make.make_spec(1))
    assert only(root).mfu is None
    assert only(root).mfu_reason == "no peak of Example CPU is known"


def test_a_peak_timed_on_the_device_stands_in(make, root):
    folder = make.write_launch(root, make.make_spec(1), 0, 0.1)
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    document["devices"][0]["gemm_peak_flop_per_s"] = 1e11
    path.write_text(json.dumps(document))
    run = only(root)
    assert run.mfu.median == pytest.approx(640 * FLOP / 1e11)
    assert run.mfu_reason == "of 100 GFLOP/s a device, a matrix product timed on it"


def test_of_a_known_device_what_a_matrix_product_reaches_stands_beside_its_makers_peak(make, root):
    folder = make.write_launch(root, make.make_spec(1, precision="bf16"), 0, 0.1, device="NVIDIA L4")
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    document["devices"][0]["gemm_peak_flop_per_s"] = 88e12
    path.write_text(json.dumps(document))
    run = only(root)
    assert run.mfu.median == pytest.approx(640 * FLOP / 121e12)
    assert run.mfu_reason.endswith("; matrix products timed on it reach 88.0 TFLOP/s")


def test_a_peak_that_a_rank_lacks_is_no_peak(make, root):
    folder = make.write_launch(root, make.make_spec(2), 0, 0.1)
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    document["devices"][0]["gemm_peak_flop_per_s"] = 1e11
    path.write_text(json.dumps(document))
    assert only(root).mfu is None


def test_what_was_not_measured_has_none(make, root):
    make.write_launch(root, make.make_spec(1, simulated_device="h100"), source="simulated", device="NVIDIA L4")
    assert (only(root).mfu, only(root).mfu_reason) == (None, "simulated, not measured")
