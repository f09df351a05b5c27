"""Simulated launches: the records of real ones, from closed forms, and marked as what they are."""

import json

import pytest

from vitscale.analysis.analyse import analyse
from vitscale.config.load import load
from vitscale.config.study import HardwareSection
from vitscale.errors import UsageError
from vitscale.hardware.probe import probe
from vitscale.launch.simulate import Simulate
from vitscale.starting import LauncherName, simulated_by
from vitscale.study import plan as planning
from vitscale.study import results
from vitscale.study.execute import execute
from vitscale.study.grid import Where


class Quiet:
    def __getattr__(self, name):
        return lambda *_: None


@pytest.fixture
def simulate(tmp_path):
    def run(*overrides, device="h100", calibration=None):
        loaded = load("quick", ("measure.launches=1", *overrides))
        plan = planning.make(loaded, Where(probe(), device), planning.described(tmp_path / "data"))
        folder = tmp_path / "out"
        with results.opened(folder, plan):
            measure = loaded.study.measure
            execute(folder, plan.grid.runs, plan.labels, measure, probe(), Simulate(calibration), Quiet())
        return folder, plan

    return run


BIG = ("model.name=vit_base_patch16_224", "img_size=224", "patch_size=16", "data.name=synthetic")


def test_the_records_say_what_the_plan_estimated(simulate):
    folder, plan = simulate(*BIG, "world_size=1,8,64", "protocol=weak", "precision=bf16")
    result = analyse(folder)
    for run in result.analysis.runs:
        estimate = plan.estimates[run.run_id]
        assert run.source == "simulated"
        assert run.step_s.median == pytest.approx(estimate.step.step_s)
        assert run.memory_peak_bytes == estimate.memory.total_bytes
        assert run.step_s.low is None
        hidden = estimate.step.communication_s - estimate.step.exposed_comm_s
        expected = None if run.world_size == 1 else pytest.approx(hidden / estimate.step.communication_s)
        assert run.overlapped_share == expected
        shares = [share for share in run.shares.model_dump().values() if share is not None]
        assert sum(shares) == pytest.approx(1)
    assert "Simulated, not measured" in result.analysis.answer


def test_each_node_writes_one_file_with_all_its_ranks(simulate):
    folder, _ = simulate(*BIG, "world_size=16", "protocol=weak")
    files = sorted(folder.glob("runs/*/launch0/steps.*.jsonl"))
    assert [path.name for path in files] == ["steps.node000.jsonl", "steps.node001.jsonl"]
    ranks = {json.loads(line)["rank"] for line in files[1].read_text().splitlines()}
    assert ranks == set(range(8, 16))


def test_a_run_that_needs_more_memory_than_the_device_has_is_out_of_memory(simulate):
    folder, _ = simulate(*BIG, "world_size=1", "protocol=weak", "micro_batch=1024", device="t4")
    manifest = json.loads(next(folder.glob("runs/*/launch0/manifest.json")).read_text())
    assert manifest["status"] == "oom"
    assert "GiB of 14.9 GiB: the probability that it fits is < 1 %" in manifest["reason"]
    assert list(folder.glob("runs/*/launch0/steps.*")) == []


def test_out_of_memory_is_what_more_likely_does_not_fit_than_not(simulate):
    sizes = range(64, 513, 32)
    folder, plan = simulate(
        *BIG, "world_size=1", "protocol=weak", f"micro_batch={','.join(map(str, sizes))}", "precision=fp16", device="t4"
    )
    manifests = [json.loads(path.read_text()) for path in folder.glob("runs/*/launch0/manifest.json")]
    statuses = {one["run_id"]: one["status"] for one in manifests}
    estimates = plan.estimates
    assert statuses == {name: "ok" if one.fit_probability >= 0.5 else "oom" for name, one in estimates.items()}
    # Where only the tensors fit, a rank does not.
    between = [one for one in estimates.values() if one.memory.total_bytes < one.memory_limit_bytes and not one.fits]
    assert between
    assert all(one.need.median_bytes > one.memory_limit_bytes for one in between)


def test_nothing_is_trained_so_there_is_no_loss(simulate):
    folder, _ = simulate()
    losses = {
        json.loads(line)["loss"] for path in folder.glob("runs/*/*/steps.*") for line in path.read_text().splitlines()
    }
    assert losses == {None}
    assert list(analyse(folder).losses) == []


def fitted(tmp_path, *others, **changes):
    one = {"median": 0.0, "low95": 0.0, "high95": 0.0}
    names = ("fixed_share", "update", "intra_node", "inter_node", "hop", "contention", "exposed_floor", "jitter")
    values = {"update": 0.1, "inter_node": 0.2, "jitter": 0.05}
    series = {
        "device": "NVIDIA H100 80GB HBM3", "model": "vit_base_patch16_224", "protocol": "weak", "engine": "deepspeed",
        "zero_stage": 0, "precision": "bf16", "reference_micro_batch": 32.0, "micro_step_s": {**one, "median": 0.08},
        "parameters": {name: {**one, "median": values.get(name, 0.0)} for name in names},
        "measured": [], "effective_draws": 1.0, "assumptions": [], **changes,
    }  # fmt: skip
    path = tmp_path / "calibration.json"
    found = {"one": series, **{f"other {index}": {**series, **other} for index, other in enumerate(others)}}
    path.write_text(json.dumps({"schema_version": 1, "series": found}))
    return path


def test_fitted_figures_take_the_place_of_data_sheets(simulate, tmp_path):
    path = fitted(tmp_path)
    asked = (
        *BIG,
        "world_size=1,64",
        "protocol=weak",
        "micro_batch=32",
        "precision=bf16",
        f"hardware.calibration={path}",
    )
    folder, plan = simulate(*asked, "data.images_per_device=3200", calibration=path)
    result = analyse(folder)
    steps = {run.world_size: run.step_s.median for run in result.analysis.runs}
    assert steps[1] == pytest.approx(0.08 * 1.1)
    # The network's ring and the expected wait of 64 ranks.
    assert steps[64] > 0.08 * (1.1 + 0.2 * 63 / 64 + 0.05 * 2)
    for run in result.analysis.runs:
        assert run.step_s.median == pytest.approx(plan.estimates[run.run_id].step.step_s)
    assert all(run.calibration for run in plan.grid.runs)


@pytest.mark.parametrize(
    ("stage", "knob", "word"),
    [
        (0, "overlap_reduce", "engine.overlap_reduce=true"),
        (1, "overlap_comm", "deepspeed.zero_optimization.overlap_comm=true"),
    ],
)
def test_a_fitted_step_hides_what_the_study_sends_beside_backward(tmp_path, stage, knob, word):
    def exposed_s(*words, **changes):
        path = fitted(tmp_path, zero_stage=stage, **changes)
        asked = (
            *BIG, "world_size=64", "protocol=weak", "micro_batch=32", "precision=bf16", f"zero_stage={stage}",
            "data.images_per_device=3200", f"hardware.calibration={path}", *words,
        )  # fmt: skip
        plan = planning.make(load("quick", asked), Where(probe(), "h100"), planning.described(tmp_path / "data"))
        (estimate,) = plan.estimates.values()
        return estimate.step.exposed_comm_s

    assert exposed_s() == pytest.approx(0.08 * 0.2 * 63 / 64)
    assert exposed_s(word, knobs={knob: True}) == 0


def test_a_calibration_of_something_else_is_refused(simulate, tmp_path):
    path = fitted(tmp_path, precision="fp32")
    with pytest.raises(UsageError, match="no series"):
        simulate(*BIG, "protocol=weak", "precision=bf16", f"hardware.calibration={path}", calibration=path)


FITTED_FOR = (
    "model.name=vit_base_patch16_224",
    "patch_size=16",
    "data.name=synthetic",
    "world_size=1",
    "protocol=weak",
    "micro_batch=32",
    "precision=bf16",
    "data.images_per_device=3200",
)


@pytest.mark.parametrize(
    ("asked", "changes"),
    [
        ("img_size=32", {}),
        ("img_size=448", {}),
        ("img_size=224", {"sizes": {"img_size": 448}}),
        ("img_size=224 engine.activation_checkpointing=true", {}),
        ("img_size=224", {"knobs": {"activation_checkpointing": True}}),
        ("img_size=224", {"optimizer": "lamb"}),
    ],
)
def test_another_size_or_knob_is_not_simulated_by_a_calibration(simulate, tmp_path, asked, changes):
    path = fitted(tmp_path, **changes)
    with pytest.raises(UsageError, match=r"no series of vit_base_patch16_224 \(.*, 12 x 768\)"):
        simulate(*FITTED_FOR, *asked.split(), f"hardware.calibration={path}", calibration=path)


@pytest.mark.parametrize(
    ("asked", "changes"),
    [
        ("img_size=224", {"sizes": {"img_size": 224, "patch_size": 16}, "optimizer": "adamw"}),
        ("img_size=448", {"sizes": {"img_size": 448}}),
        ("img_size=224 engine.activation_checkpointing=true", {"knobs": {"activation_checkpointing": True}}),
    ],
)
def test_the_same_sizes_and_knobs_are(simulate, tmp_path, asked, changes):
    path = fitted(tmp_path, **changes)
    folder, _ = simulate(*FITTED_FOR, *asked.split(), f"hardware.calibration={path}", calibration=path)
    assert analyse(folder).analysis.runs[0].step_s.median == pytest.approx(0.08 * 1.1)


def test_a_calibration_names_its_device_itself(tmp_path):
    hardware = HardwareSection(calibration=str(fitted(tmp_path)))
    assert simulated_by(hardware, LauncherName.simulate) == ("h100", None)
    assert simulated_by(hardware, LauncherName.local) is None


@pytest.mark.parametrize(
    ("devices", "problem"),
    [
        (("NVIDIA H100 80GB HBM3", "cpu"), "of cpu, h100: which is to be simulated"),
        ((None,), "of no device that its source names"),
        (("Example GPU",), "of `example gpu`, which the catalog does not have"),
    ],
)
def test_a_calibration_of_no_one_device_that_is_known_is_refused(tmp_path, devices, problem):
    path = fitted(tmp_path, *({"device": one} for one in devices[1:]), device=devices[0])
    with pytest.raises(UsageError, match=problem) as caught:
        simulated_by(HardwareSection(calibration=str(path)), LauncherName.simulate)
    assert caught.value.hint


def test_of_two_fits_of_one_configuration_the_protocol_decides(simulate, tmp_path):
    slow = {"median": 0.16, "low95": 0.0, "high95": 0.0}
    path = fitted(tmp_path, {"protocol": "weak", "micro_step_s": slow}, protocol="strong")
    folder, _ = simulate(*FITTED_FOR, "img_size=224", f"hardware.calibration={path}", calibration=path)
    assert analyse(folder).analysis.runs[0].step_s.median == pytest.approx(0.16 * 1.1)


def test_of_two_fits_of_one_protocol_the_nearer_batch_decides(simulate, tmp_path):
    slow = {"median": 0.16, "low95": 0.0, "high95": 0.0}
    path = fitted(tmp_path, {"micro_step_s": slow, "reference_micro_batch": 32.0}, reference_micro_batch=256.0)
    folder, _ = simulate(*FITTED_FOR, "img_size=224", f"hardware.calibration={path}", calibration=path)
    assert analyse(folder).analysis.runs[0].step_s.median == pytest.approx(0.16 * 1.1)


def test_what_images_took_is_the_data_of_a_fitted_step(simulate, tmp_path):
    # 32 images of a rank, on nodes with one rank each as it was measured.
    path = fitted(tmp_path, readings=[[1, 1e-3]])
    folder, _ = simulate(*FITTED_FOR, "img_size=224", f"hardware.calibration={path}", calibration=path)
    (run,) = analyse(folder).analysis.runs
    assert run.step_s.median == pytest.approx(0.08 * 1.1 + 32e-3)
    assert run.shares.data == pytest.approx(32e-3 / run.step_s.median)


def test_a_fitted_step_of_ranks_that_share_images_is_of_a_ranks_part(tmp_path):
    # 32 images of two ranks are 16 of each, as a calibration counts them.
    path = fitted(tmp_path, knobs={"sequence_parallel": 2}, reference_micro_batch=16.0, readings=[[2, 1e-3]])
    asked = (
        *BIG, "world_size=2", "sequence_parallel=2", "protocol=weak", "micro_batch=32", "precision=bf16",
        "zero_stage=0", "data.images_per_device=3200", f"hardware.calibration={path}",
    )  # fmt: skip
    plan = planning.make(load("quick", asked), Where(probe(), "h100"), planning.described(tmp_path / "data"))
    (estimate,) = plan.estimates.values()
    assert estimate.step.compute_s == pytest.approx(0.08)
    assert estimate.step.data_s == pytest.approx(16e-3)
