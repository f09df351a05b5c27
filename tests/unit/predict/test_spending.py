"""Energy and cost of asked world sizes: from measured power, boards' limits and prices, or not at all with a reason."""

import math
from dataclasses import replace

import pytest

from vitscale.cost.scaling import Layout
from vitscale.hardware import catalog
from vitscale.predict.ask import answers
from vitscale.predict.model import calibrate, predict
from vitscale.predict.read import read
from vitscale.predict.series import Asked, Observation, Series
from vitscale.records.samples import HostSample, Sample
from vitscale.records.writer import write_json


def series(power=True, device="NVIDIA H100 80GB HBM3", **facts):
    seen = tuple(
        Observation(
            Layout(size, 1, 32, 1), 0.1 * (1 + 0.02 * math.log2(size)),
            power_w=500.0 * size if power else None, images_per_epoch=64_000,
        )
        for size in (1, 2, 4)
    )  # fmt: skip
    return Series("s", seen, protocol="strong_fixed_micro", model="vit_base_patch16_224", device=device, **facts)


def at(one, asked=None, size=8):
    found = predict(calibrate(one), [size], asked)
    return found, found.points[0]


def test_measured_power_times_ranks_times_step():
    found, point = at(series())
    spent = point.spending
    assert spent.energy_per_step_j.median == pytest.approx(500 * 8 * point.step_s.median, rel=0.02)
    assert spent.energy_per_image_j.median == pytest.approx(spent.energy_per_step_j.median / (8 * 32))
    assert not spent.energy_is_bound
    ends = math.log(spent.energy_per_step_j.high95 / spent.energy_per_step_j.low95)
    own = math.log(point.step_s.high95 / point.step_s.low95)
    assert ends == pytest.approx(math.hypot(own, 2 * 1.96 * 0.1), rel=0.15)
    assert any("500 W, as measured at 1, 2, 4 ranks" in line for line in found.assumptions)


def test_a_board_s_limit_is_an_upper_bound_and_said_to_be_one():
    found, point = at(series(power=False))
    spent = point.spending
    assert spent.energy_is_bound
    assert spent.energy_per_step_j.median == pytest.approx(700 * 8 * point.step_s.median)
    assert spent.energy_per_step_j.high95 == pytest.approx(700 * 8 * point.step_s.high95)
    assert any("at most this: 700 W" in line for line in found.assumptions)


def test_another_device_has_its_own_limit_and_no_price_of_the_study():
    found, point = at(series(price_per_hour=2.0), Asked(device="t4"))
    assert point.spending.energy_is_bound
    assert point.spending.energy_per_step_j.median == pytest.approx(
        catalog.device("t4").board_power_w * 8 * point.step_s.median
    )
    assert point.spending.cost_per_million_images is None
    assert "not that of t4" in found.reasons["cost_per_million_images"]


def test_power_of_cpus_is_that_of_hosts():
    one = series(device="cpu")
    seen = tuple(replace(each, power_w=80.0) for each in one.observations)
    _, point = at(replace(one, observations=seen), size=4)
    assert point.spending.energy_per_step_j.median == pytest.approx(80 * point.step_s.median, rel=0.02)


def test_a_device_without_figures_has_no_energy():
    found, point = at(series(power=False, device="cpu"))
    assert point.spending.energy_per_step_j is None
    assert found.reasons["energy_per_step_j"] == "no power was measured, and `cpu` has none in the catalog"


def test_cost_is_price_times_ranks_times_time():
    found, point = at(series(price_per_hour=2.0))
    spent, rate = point.spending, point.images_per_s
    for name in ("median", "low95", "high80"):
        against = {"median": "median", "low95": "high95", "high80": "low80"}[name]
        expected = 2.0 / 3600 * 8 * 1e6 / getattr(rate, against)
        assert getattr(spent.cost_per_million_images, name) == pytest.approx(expected, rel=0.01)
    assert spent.cost_per_epoch.median == pytest.approx(0.064 * spent.cost_per_million_images.median)
    assert "cost_per_epoch" not in found.reasons


def test_a_price_that_is_asked_comes_first_and_is_no_other_configuration():
    found, point = at(series(price_per_hour=2.0), Asked(price_per_hour=4.0))
    _, own = at(series(price_per_hour=2.0))
    assert found.asked == {}
    assert point.step_s == own.step_s
    assert point.spending.cost_per_epoch.median == pytest.approx(2 * own.spending.cost_per_epoch.median)


def test_an_epoch_of_weak_scaling_grows_with_the_ranks():
    one = series(price_per_hour=2.0)
    seen = tuple(replace(each, images_per_epoch=1000 * each.layout.world_size) for each in one.observations)
    weak = replace(one, observations=seen, protocol="weak")
    _, point = at(weak)
    assert point.spending.cost_per_epoch.median == pytest.approx(0.008 * point.spending.cost_per_million_images.median)
    found, _ = at(weak, Asked(protocol="strong_fixed_micro"))
    assert found.reasons["cost_per_epoch"] == "the images of an epoch are not told"


def test_without_price_or_batch_there_is_a_reason():
    found, point = at(series())
    assert point.spending.cost_per_epoch is None
    assert "price_per_hour=2.5" in found.reasons["cost_per_epoch"]
    found, point = at(series(price_per_hour=2.0, batch_told=False))
    assert point.spending.energy_per_step_j is not None
    assert point.spending.energy_per_image_j is point.spending.cost_per_million_images is None
    assert "micro-batch is not told" in found.reasons["energy_per_image_j"]


def test_power_and_price_are_read_from_a_results_folder(make, tmp_path):
    """RAPL of one host, 40 W with one rank and 60 W with two."""
    for size, watts in ((1, 40.0), (2, 60.0)):
        windows = ["setup", *["steady"] * 4]
        samples = [
            Sample(time_s=time, window=window, node=0, host=HostSample(energy_j=watts * time))
            for time, window in enumerate(windows)
        ]
        make.write_launch(tmp_path, make.make_spec(size), samples=samples)
    write_json(tmp_path / "resolved.json", {"schema_version": 1, "name": "s", "hardware": {"price_per_hour": 2.0}})
    (found,) = read(tmp_path)
    assert [one.power_w for one in found.observations] == pytest.approx([40, 60])
    assert [one.images_per_epoch for one in found.observations] == [1437, 1437]
    assert found.price_per_hour == pytest.approx(2.0)
    told, point = at(found, size=4)
    assert point.spending.energy_per_step_j.median == pytest.approx(50 * 2 * point.step_s.median, rel=0.02)
    assert point.spending.energy_per_step_j.high95 > 1.4 * point.spending.energy_per_step_j.median
    assert set(told.reasons) == {"training_s", "memory_limit_bytes", "fit_probability"}


def test_an_epoch_of_another_length_in_each_run_has_no_cost():
    seen = tuple(replace(one, images_per_epoch=1000 * one.layout.world_size) for one in series().observations)
    _, point = at(replace(series(price_per_hour=2.0), observations=seen))
    assert point.spending.cost_per_million_images is not None
    assert point.spending.cost_per_epoch is None


def test_the_same_board_by_its_other_name_is_no_other_device(tmp_path):
    path = tmp_path / "t.csv"
    rows = [f"s,NVIDIA A100-SXM4-80GB,{size},1,32,1,{0.1 * (1 + 0.02 * size)}" for size in (1, 2, 4)]
    path.write_text("\n".join(["series,device,world_size,nodes,micro_batch,grad_accum,step_s", *rows]) + "\n")
    (own,), (named,) = (answers(path, words, "8", None, None, one=True).told for words in ([], ["device=a100-80gb"]))
    assert named.prediction.points == own.prediction.points


def test_a_training_is_its_steps_with_checkpoints_and_failures():
    found, point = at(series(epochs=90.0))
    steps_s = 90 * 64_000 / (8 * 32) * point.step_s.median
    assert steps_s < point.spending.training_s.median < 1.1 * steps_s
    assert any("90 epochs; failures: a device" in line for line in found.assumptions)
    _, twice = at(series(epochs=90.0), Asked(epochs=180.0))
    assert twice.spending.training_s.median == pytest.approx(2 * point.spending.training_s.median)
    _, alone = at(series(epochs=90.0), size=1)
    _, many = at(series(epochs=90.0), size=4096)
    lost = [one.spending.training_s.median / one.step_s.median * one.layout.world_size for one in (alone, many)]
    assert lost[1] > 1.005 * lost[0]


def test_without_epochs_images_or_a_model_a_training_has_a_reason():
    assert at(series())[0].reasons["training_s"].startswith("no epochs are told: epochs=90")
    seen = tuple(replace(one, images_per_epoch=None) for one in series().observations)
    found, point = at(replace(series(epochs=90.0), observations=seen))
    assert point.spending.training_s is None
    assert found.reasons["training_s"] == "the images of an epoch are not told"
    assert "checkpoint" in at(replace(series(epochs=90.0), model="bert-large"))[0].reasons["training_s"]
