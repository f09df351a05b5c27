"""From ideal to measured: every bar worked out here, and their sum exact."""

from itertools import pairwise

import pytest

from vitscale.analysis.analyse import analyse
from vitscale.report.rows.waterfall import waterfall_data
from vitscale.report.verdict_tables import waterfall_table

ALONE = {"data_s": 0.05, "forward_s": 0.3, "backward_s": 0.5, "optimizer_s": 0.1, "comm_exposed_s": 0, "wait_s": 0}
PAIR = {"data_s": 0.05, "forward_s": 0.2, "backward_s": 0.3, "optimizer_s": 0.1, "comm_exposed_s": 0.2, "wait_s": 0.1}


@pytest.fixture
def root(make, tmp_path):
    return make.write_study(tmp_path / "study")


def steady(make, root, spec, step_s, parts):
    """Parts without the ripple that other tests want: a multiple of 5 steps has none on the mean."""
    make.write_launch(root, spec, 0, step_s, parts=parts)


def fall(root, size):
    (run,) = [one for one in analyse(root).analysis.runs if one.world_size == size]
    return run, run.waterfall


@pytest.mark.parametrize(("protocol", "ideal_s"), [("strong", 0.05), ("weak", 0.1)])
def test_bars_are_what_parts_take_beyond_the_ideal_of_the_same_work(make, root, protocol, ideal_s):
    steady(make, root, make.make_spec(1, protocol), 0.1, ALONE)
    steady(make, root, make.make_spec(2, protocol), 0.2, PAIR)
    run, bars = fall(root, 2)
    assert bars.ideal_step_s == pytest.approx(ideal_s)
    assert bars.compute_s == pytest.approx(0.5 * 0.2 - 0.8 * ideal_s)
    assert bars.optimizer_s == pytest.approx(0.1 * 0.2 - 0.1 * ideal_s)
    assert bars.comm_exposed_s == pytest.approx(0.04)
    assert bars.wait_s == pytest.approx(0.02)
    assert bars.other_s == pytest.approx(0.05 * 0.2 - 0.05 * ideal_s)
    assert bars.launch_gap_s is None
    beyond = [value for name, value in bars if name.endswith("_s") and "step" not in name and "images" not in name]
    assert bars.ideal_step_s + sum(value for value in beyond if value is not None) == pytest.approx(0.2, rel=1e-12)
    assert bars.ideal_step_s / bars.step_s == pytest.approx(run.efficiency.median)


def test_the_baseline_has_none_and_neither_has_a_run_without_a_split(make, root):
    steady(make, root, make.make_spec(1), 0.1, ALONE)
    make.write_launch(root, make.make_spec(2), parts={})
    assert fall(root, 1)[1] is None
    assert fall(root, 2)[1] is None


def test_the_figure_goes_from_100_percent_to_the_efficiency(make, root):
    steady(make, root, make.make_spec(1), 0.1, ALONE)
    steady(make, root, make.make_spec(2), 0.08, PAIR)
    result = analyse(root)
    rows = waterfall_data(result).rows
    assert [row["bar"] for row in rows] == [
        "ideal", "data", "computing", "optimizer", "communication", "wait for ranks", "other", "measured",
    ]  # fmt: skip
    for before, row in pairwise(rows[1:-1]):
        assert row["start"] == pytest.approx(before["end"])
    run = next(one for one in result.analysis.runs if one.world_size == 2)
    assert rows[-2]["end"] == pytest.approx(rows[-1]["end"]) == pytest.approx(run.efficiency.median)
    by_bar = {row["bar"]: row for row in rows}
    assert by_bar["communication"]["figure"] == "−20.0 %"
    assert by_bar["ideal"]["shown"] == "1,280 images/s"
    assert by_bar["measured"]["shown"] == "800 images/s"
    (cells,) = waterfall_table(result).rows
    assert cells[1:5] == ("1,280", "800", "62.5 %", "50.0 ms")
    assert (cells[8], cells[11]) == ("16.0 ms", "n/a")


def test_a_part_that_takes_less_than_its_ideal_is_a_gain(make, root):
    steady(make, root, make.make_spec(1), 0.1, ALONE)
    steady(make, root, make.make_spec(2), 0.04, {**ALONE, "forward_s": 0.1, "comm_exposed_s": 0.2})
    computing = next(row for row in waterfall_data(analyse(root)).rows if row["bar"] == "computing")
    assert (computing["kind"], computing["figure"]) == ("gained", "+40.0 %")
    assert computing["end"] > 1


@pytest.mark.parametrize("late_s", [0.0, 0.03])
def test_where_the_verdict_names_a_late_rank_the_figure_says_in_which_bars_it_is(make, root, late_s):
    def parts(rank):
        return {**PAIR, "forward_s": 0.2 + 10 * late_s * rank, "wait_s": 0.1 + 10 * late_s * (1 - rank)}

    steady(make, root, make.make_spec(1), 0.1, ALONE)
    steady(make, root, make.make_spec(2), 0.1, parts)
    told = any("a late rank works longer" in note for note in waterfall_data(analyse(root)).notes)
    assert told == (late_s > 0)


def test_computing_is_cut_by_the_causes_that_are_known(make, root):
    """At 2 ranks 32 images take 60 ms in place of 40: their micro-batch is half of the baseline's."""
    for launch in range(2):
        make.write_launch(root, make.make_spec(1), launch, 0.1, parts=ALONE)
        make.write_launch(root, make.make_spec(2), launch, 0.1, parts={**PAIR, "forward_s": 0.3})
    result = analyse(root)
    rows = {row["bar"]: row for row in waterfall_data(result).rows}
    assert list(rows)[2:4] == ["small micro-batch", "computing"]
    assert rows["small micro-batch"]["figure"] == "−20.0 %"
    assert rows["computing"]["figure"] == "0.0 %"
    assert rows["computing"]["start"] == pytest.approx(rows["small micro-batch"]["end"])
    assert rows["measured"]["end"] == pytest.approx(0.5)


def test_two_causes_of_one_step_are_cut_off_one_below_the_other(make, root):
    """In strong scaling a smaller micro-batch and a shared host together; the weak twin tells the second apart."""
    one = {**ALONE, "data_s": 0, "forward_s": 0.3, "backward_s": 0.6}
    two = {**one, "optimizer_s": 0.05, "comm_exposed_s": 0.03, "wait_s": 0.02}
    for launch in range(3):
        for size, protocol, step_s, parts in (
            (1, "strong", 0.1, one), (2, "strong", 0.09, two), (1, "weak", 0.065, one), (2, "weak", 0.09, two)
        ):  # fmt: skip
            make.write_launch(root, make.make_spec(size, protocol), launch, step_s * (1 + launch / 1000), parts=parts)
    result = analyse(root)
    rows = [row for row in waterfall_data(result).rows if row["panel"].startswith("strong")]
    assert {"small micro-batch", "shared machine"} <= {row["bar"] for row in rows}
    for before, row in pairwise(rows[1:-1]):
        assert row["start"] == pytest.approx(before["end"])
    run = next(one for one in result.analysis.runs if (one.protocol, one.world_size) == ("strong", 2))
    assert rows[-2]["end"] == pytest.approx(run.efficiency.median)
