"""What a plan says before anything is started."""

import pytest

from vitscale.config.load import load
from vitscale.cost.models import shape
from vitscale.cost.vit import parameters, training_flop
from vitscale.hardware.probe import Gpu, Machine
from vitscale.study import plan as planning
from vitscale.study.grid import Where

CPU = Machine(2, (0, 1), 8 * 2**30, "Example CPU", (), "none here", None)
EIGHT = Machine(
    64, tuple(range(64)), 512 * 2**30, "Example", (Gpu("NVIDIA H100 80GB HBM3", 80 * 2**30),) * 8, None, "1"
)


@pytest.fixture
def make_plan(tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "matrix_flop_per_s", lambda: 100e9)

    def make_it(*overrides, where=None, study="quick"):
        return planning.make(load(study, overrides), where or Where(CPU), planning.described(tmp_path))

    return make_it


def rows(plan):
    return {run["label"]: run for run in plan.document()["runs"]}


def test_every_run_has_its_estimate_from_closed_forms(make_plan):
    run = rows(make_plan("global_batch=128"))["strong, 2 processes"]
    model = shape("vit_tiny_patch16_224", 32, 4, 10)
    assert run["estimate"]["parameters"] == parameters(model)
    assert run["estimate"]["flop_per_step"] == 128 * training_flop(model)
    assert run["estimate"]["collectives"] == [{"operation": "all_reduce", "calls": 1, "bytes": 4 * parameters(model)}]
    memory = run["estimate"]["memory_bytes"]
    assert memory["total"] == sum(memory[key] for key in memory if key != "total")
    assert run["estimate"]["memory_limit_bytes"] == 4 * 2**30
    assert run["estimate"]["fits"] is True


def test_the_users_bucket_sizes_count(make_plan):
    plain = rows(make_plan("zero_stage=2"))["strong, 2 processes"]["estimate"]
    small = rows(make_plan("zero_stage=2", "deepspeed.zero_optimization.reduce_bucket_size=1000000"))
    small = small["strong, 2 processes"]["estimate"]
    calls = [next(one["calls"] for one in found["collectives"] if one["operation"] == "all_reduce")
             for found in (plain, small)]  # fmt: skip
    assert calls == [1, 6]
    assert small["memory_bytes"]["buckets"] < plain["memory_bytes"]["buckets"]


def test_the_probability_to_fit_goes_with_what_is_needed(make_plan):
    few, many = (
        rows(
            make_plan(
                "precision=bf16",
                "model.name=vit_base_patch16_224",
                "img_size=224",
                "patch_size=16",
                "protocol=weak",
                f"micro_batch={images}",
                "world_size=8",
                "axes.device=cuda",
                "data.name=synthetic",
                where=Where(EIGHT),
            )
        )
        for images in (64, 2048)
    )
    likely, unlikely = (next(iter(found.values()))["estimate"] for found in (few, many))
    assert likely["fit_probability"] > 0.99 > 0.01 > unlikely["fit_probability"]
    assert likely["memory_bytes"]["total"] < likely["memory_needed_bytes"]["median"]
    assert likely["memory_needed_bytes"]["low95"] < likely["memory_needed_bytes"]["high95"]


def test_what_does_not_fit_is_said(make_plan):
    plan = make_plan(
        "model.name=vit_huge_patch14_224", "img_size=224", "patch_size=14", "micro_batch=64", "protocol=weak"
    )
    assert {run["estimate"]["fits"] for run in plan.document()["runs"]} == {False}


def test_a_gpu_of_the_catalog_has_a_step_time_and_an_unknown_one_has_none(make_plan):
    known = rows(make_plan("world_size=1,8", "precision=bf16", where=Where(EIGHT)))
    assert known["strong, 8 GPUs"]["estimate"]["step_s"] > 0
    stranger = Machine(**{**vars(EIGHT), "gpus": (Gpu("Example GPU", 80 * 2**30),) * 8})
    unknown = rows(make_plan("world_size=1,8", "precision=bf16", where=Where(stranger)))["strong, 8 GPUs"]["estimate"]
    assert unknown["step_s"] is None
    assert unknown["images_per_s"] is None
    assert any("no bf16 peak known" in line for line in unknown["assumptions"])


def test_bf16_on_a_cpu_has_no_assumed_speed(make_plan):
    found = rows(make_plan("precision=bf16"))
    assert {run["estimate"]["step_s"] for run in found.values()} == {None}


def test_the_expected_time_counts_every_launch_and_process_start(make_plan):
    three, six = make_plan().expected_s, make_plan("measure.launches=6").expected_s
    assert six == pytest.approx(2 * three)
    # 4 runs of 10 s and their warm-up, 2 process starts, 3 times.
    assert three > 3 * (4 * 10 + 2 * planning.START_S)
    assert make_plan("precision=bf16", "measure.steps=10").expected_s is None


def test_the_expected_time_of_training_counts_all_its_steps(make_plan):
    words = ("launches=1", "optimizer.lr_policy=none")
    one, three = (make_plan(*words, f"train.epochs={epochs}").expected_s for epochs in (1, 3))
    starts = 2 * planning.START_S + 4 * planning.SETUP_S
    assert three - starts == pytest.approx(3 * (one - starts))
    assert make_plan(*words, "train.epochs=1", "precision=bf16").expected_s is None


def test_the_run_id_does_not_depend_on_the_machine(make_plan):
    more = Machine(**{**vars(CPU), "memory_bytes": 2**40, "cpu_name": "Another"})
    assert [run.run_id for run in make_plan().grid.runs] == [
        run.run_id for run in make_plan(where=Where(more)).grid.runs
    ]


def test_prepared_data_enter_the_run_id_by_their_content(tmp_path):
    loaded = load("quick")
    said = []
    prepared = planning.make(loaded, Where(CPU), planning.prepared(tmp_path, said.append))
    again = planning.make(loaded, Where(CPU), planning.described(tmp_path))
    assert [run.run_id for run in prepared.grid.runs] == [run.run_id for run in again.grid.runs]
    assert len(prepared.grid.runs[0].data.fingerprint) == 16
    assert any("digits" in line for line in said)
