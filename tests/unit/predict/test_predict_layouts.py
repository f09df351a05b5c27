"""Which batch an asked world size has, and which run its speed-up refers to."""

import pytest

from vitscale.analysis.analyse import analyse
from vitscale.cost.scaling import Layout
from vitscale.errors import UsageError
from vitscale.predict.layouts import baseline_of, layout_of, possible
from vitscale.predict.model import calibrate, predict
from vitscale.predict.read import read
from vitscale.predict.series import Asked, Observation, Series

WEAK = Series("weak", tuple(Observation(Layout(n, 1, 64, 1), 0.1) for n in (1, 2, 4)), "weak")
STRONG = Series("strong", tuple(Observation(Layout(n, 1, 64 / n, 4), 0.4 / n) for n in (1, 2, 4)), "strong")


def batch(series, size, **asked):
    found = layout_of(series, Asked(**asked), size, 8)
    return found.micro_batch, found.grad_accum


def test_the_baseline_of_a_batch_sweep_has_the_batch_of_what_is_asked():
    times = ((1, 32, 0.05), (1, 128, 0.16), (2, 128, 0.165), (4, 128, 0.17))
    series = Series("sweep", tuple(Observation(Layout(n, 1, micro, 1), s) for n, micro, s in times))
    found = predict(calibrate(series), [1, 2, 4])
    assert [one.layout.micro_batch for one in found.points] == [128] * 3
    assert found.points[1].efficiency.median == pytest.approx(0.16 / 0.165, rel=0.03)


def test_runs_on_more_nodes_are_no_part_of_the_baseline():
    times = ((2, 1, 0.1), (2, 2, 0.3), (4, 1, 0.1))
    series = Series("nodes", tuple(Observation(Layout(n, nodes, 64, 1), s) for n, nodes, s in times), "weak")
    assert baseline_of(series) == Layout(2, 1, 64, 1)
    assert predict(calibrate(series), [4], ranks_per_node=4).points[0].efficiency.median == pytest.approx(1, rel=0.1)


def study(make, root, **measure):
    folder = make.write_study(root, **measure)
    for size in (1, 2, 4):
        for launch in range(2):
            make.write_launch(folder, make.make_spec(size), launch, 0.2 / size + 0.02)
    return folder


def test_results_refer_to_the_baseline_of_their_report(make, tmp_path):
    folder = study(make, tmp_path / "named", baseline=2)
    (series,) = read(folder)
    found = predict(calibrate(series), [4])
    report = analyse(folder).analysis
    assert found.baseline == 2
    (four,) = (one for one in report.runs if one.world_size == 4)
    assert found.points[0].efficiency.median == pytest.approx(four.efficiency.median, rel=0.03)


def test_a_named_baseline_that_is_missing_is_said(make, tmp_path):
    (series,) = read(study(make, tmp_path / "missing", baseline=8))
    found = predict(calibrate(series), [4])
    assert found.baseline == 1
    assert any("no valid run has the 8 ranks of `measure.baseline`" in line for line in found.assumptions)


def test_a_global_batch_that_is_asked_is_shared_among_the_ranks():
    assert batch(WEAK, 8, global_batch=4096) == (64, 8)
    assert batch(WEAK, 128, global_batch=4096) == (32, 1)
    assert batch(WEAK, 8, global_batch=4096, micro_batch=128) == (128, 4)
    assert batch(WEAK, 8, global_batch=4096, grad_accum=2) == (256, 2)
    own, asked = (predict(calibrate(WEAK), [8], one).points[0] for one in (Asked(), Asked(global_batch=4096)))
    assert asked.step_s.median > 6 * own.step_s.median


def test_each_batch_that_is_asked_of_strong_scaling_is_kept():
    assert batch(STRONG, 2, micro_batch=16) == (16, 8)
    assert batch(STRONG, 8, grad_accum=8) == (4, 8)
    assert batch(STRONG, 8, micro_batch=16, grad_accum=2) == (16, 2)
    assert batch(STRONG, 8) == (8, 4)


@pytest.mark.parametrize(
    ("series", "size", "asked", "words"),
    [
        (STRONG, 8, {"micro_batch": 64}, r"256 is not 8 ranks times micro_batch=64"),
        (STRONG, 2, {"micro_batch": 48}, "a whole number of micro-steps"),
        (WEAK, 8, {"global_batch": 4096, "micro_batch": 64, "grad_accum": 4}, "times grad_accum=4"),
        (STRONG, 8, {"protocol": "strong", "micro_batch": 64, "grad_accum": 4}, "times grad_accum=4"),
        (WEAK, 8, {"global_batch": 4096, "protocol": "weak"}, "protocol=weak grows it"),
        (STRONG, 96, {}, "4 micro-steps of 96 ranks without an image"),
        (STRONG, 4, {"grad_accum": 128}, "128 micro-steps of 4 ranks"),
    ],
)
def test_batches_that_cannot_be_are_refused(series, size, asked, words):
    with pytest.raises(UsageError, match=words):
        layout_of(series, Asked(**asked), size, 8)


def test_a_series_without_a_micro_batch_takes_no_other_batch():
    series = Series("untold", WEAK.observations, "weak", batch_told=False)
    for asked in ({"micro_batch": 64}, {"global_batch": 512}, {"protocol": "strong"}):
        with pytest.raises(UsageError, match="does not tell its micro-batch"):
            layout_of(series, Asked(**asked), 8, 8)


def test_sizes_that_cannot_share_the_batch_are_left_out_of_what_is_suggested():
    found = possible(STRONG, Asked(micro_batch=32), [1, 2, 3, 8, 16], 8)
    assert [one.world_size for one in found] == [1, 2, 8]
