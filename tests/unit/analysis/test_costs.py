"""Energy and money per epoch and to a target, and the knee: against figures worked out by hand."""

import json

import pytest

from vitscale.analysis.analyse import analyse
from vitscale.analysis.costs import knees, price_per_s
from vitscale.analysis.result import Interval, RunResult, Shares
from vitscale.records.samples import GpuSample, Sample


def powered(watts, ranks=1):
    """Four seconds of a steady window in which each rank's GPU draws `watts`."""
    return [
        Sample(
            time_s=time_s,
            window="steady" if time_s else "setup",
            node=0,
            gpus=tuple(GpuSample(rank=rank, energy_j=watts * time_s) for rank in range(ranks)),
        )
        for time_s in range(5)
    ]


def study(make, root, **tables):
    make.write_study(root)
    resolved = json.loads((root / "resolved.json").read_text())
    (root / "resolved.json").write_text(json.dumps({**resolved, **tables}))
    return root


def test_energy_and_cost_of_an_epoch(make, tmp_path):
    root = study(make, tmp_path, hardware={"price_per_hour": 3.6})
    for launch in range(3):
        make.write_launch(root, make.make_spec(2), launch, 0.1, samples=powered(200, 2))
    (run,) = analyse(root).analysis.runs
    costs = run.costs
    assert costs.power_w.median == pytest.approx(400)
    assert costs.images_per_joule.median == pytest.approx(640 / 400)
    assert run.epoch_s.median == pytest.approx(1437 / 640)
    assert costs.energy_per_epoch_j.median == pytest.approx(1437 / 1.6)
    assert costs.cost_per_epoch.median == pytest.approx(1437 / 640 * 2 * 0.001)
    assert (costs.energy_to_accuracy_j, costs.cost_to_accuracy) == (None, None)


def test_intervals_turn_round_where_the_figure_does(make, tmp_path):
    root = study(make, tmp_path, hardware={"price_per_hour": 3.6})
    for launch, step_s in enumerate((0.09, 0.1, 0.11)):
        make.write_launch(root, make.make_spec(1), launch, step_s, samples=powered(200))
    run = analyse(root).analysis.runs[0]
    costs = run.costs
    for one in (costs.images_per_joule, run.epoch_s, costs.energy_per_epoch_j, costs.cost_per_epoch):
        assert one.low < one.median < one.high


def test_what_is_not_told_is_null(make, tmp_path):
    root = study(make, tmp_path)
    make.write_launch(root, make.make_spec(1))
    assert analyse(root).analysis.runs[0].costs.model_dump(exclude_none=True) == {}


def evaluated(make, root, launch, accuracies):
    folder = make.write_launch(root, make.make_spec(2), launch, samples=powered(200, 2))
    lines = [{"test_accuracy": one, "seconds": 10.0 * (n + 1)} for n, one in enumerate(accuracies)]
    (folder / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_to_the_target_counts_to_its_first_evaluation(make, tmp_path):
    root = study(make, tmp_path, hardware={"price_per_hour": 3.6}, train={"target_accuracy": 0.9})
    evaluated(make, root, 0, (0.5, 0.9, 0.8))
    evaluated(make, root, 1, (0.5, 0.6, 0.95))
    run = analyse(root).analysis.runs[0]
    assert run.time_to_accuracy_s.median == 25
    assert run.costs.energy_to_accuracy_j.median == pytest.approx(25 * 400)
    assert run.costs.cost_to_accuracy.median == pytest.approx(25 * 2 * 0.001)


def test_a_launch_that_missed_the_target_leaves_no_figure(make, tmp_path):
    root = study(make, tmp_path, train={"target_accuracy": 0.9})
    evaluated(make, root, 0, (0.5, 0.95))
    evaluated(make, root, 1, (0.5, 0.89))
    run = analyse(root).analysis.runs[0]
    assert (run.time_to_accuracy_s, run.costs.energy_to_accuracy_j) == (None, None)


@pytest.mark.parametrize("hardware", [None, {}, {"price_per_hour": None}, {"price_per_hour": True}, "h100"])
def test_a_price_that_is_none_is_not_told(hardware):
    assert price_per_s({"hardware": hardware}) is None


def result(world_size, rate, valid=True, series="one"):
    empty = dict.fromkeys(
        ("protocol", "model", "dataset", "optimizer", "nodes", "engine", "zero_stage", "micro_batch", "grad_accum",
         "global_batch", "precision", "device", "step_s", "speedup", "efficiency", "memory_peak_bytes")
    )  # fmt: skip
    return RunResult(
        **empty,
        run_id=f"{series}-w{world_size}",
        series=series,
        world_size=world_size,
        axes={},
        source="measured",
        launches=3,
        images_per_s=Interval(median=rate),
        shares=Shares(),
        valid=valid,
    )


@pytest.mark.parametrize(
    ("rates", "world_size", "reached"),
    [
        ({1: 100, 2: 200, 4: 400}, 4, False),
        ({1: 100, 2: 190, 4: 260, 8: 300}, 2, True),  # 4 gives 1.37 of 2, less than sqrt(2)
        ({1: 100, 2: 190, 4: 270, 8: 300}, 4, True),  # 1.42, more
        ({1: 100, 2: 140}, 1, True),
        ({1: 100, 2: 90}, 1, True),
        ({1: 100, 2: 120, 8: 800}, 8, False),  # a poor step before a good one
    ],
)
def test_the_knee_is_where_time_times_cost_is_least(rates, world_size, reached):
    (knee,) = knees([result(size, rate) for size, rate in rates.items()])
    assert (knee.world_size, knee.run_id, knee.reached) == (world_size, f"one-w{world_size}", reached)


def test_runs_that_are_not_valid_and_lone_sizes_have_no_part_in_a_knee():
    assert knees([result(1, 100)]) == ()
    assert knees([result(1, 100), result(2, 200, valid=False)]) == ()
    found = knees([result(size, size * 100, series=series) for series in ("a", "b") for size in (1, 2)])
    assert [knee.series for knee in found] == ["a", "b"]


def test_the_report_gets_launches_series_and_knees(make, tmp_path):
    root = study(make, tmp_path)
    for size, step_s in ((1, 0.1), (2, 0.052)):
        for launch in range(2):
            make.write_launch(root, make.make_spec(size), launch, step_s, samples=powered(200, size))
    found = analyse(root).devices
    assert len(found.launches) == 4
    assert [(one.launch, one.device, len(one.readings)) for one in found.series] == [
        (0, "GPU of rank 0", 4),
        (0, "host 0", 4),
        (0, "GPU of rank 0", 4),
        (0, "GPU of rank 1", 4),
        (0, "host 0", 4),
    ]
    assert [(knee.world_size, knee.reached) for knee in found.knees] == [(2, False)]
