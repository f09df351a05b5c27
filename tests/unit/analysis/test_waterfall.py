"""From ideal to measured: every bar worked out here, and their sum exact."""

from dataclasses import replace
from itertools import pairwise

import pytest

from vitscale.analysis.analyse import analyse
from vitscale.analysis.result import RankStep
from vitscale.analysis.waterfall import late_parts
from vitscale.records.samples import GpuSample, Sample
from vitscale.report.rows.waterfall import beyond_ideal, waterfall_data
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


EVEN = {"data_s": 0.05, "forward_s": 0.2, "backward_s": 0.2, "optimizer_s": 0.05, "comm_exposed_s": 0.1, "wait_s": 0.02}
"""On 2 ranks in 100 ms as fast per image as `ALONE`: what is lost of it is communication, waiting and being late."""


def late(rank, **longer):
    """Parts of each rank: one takes 30 % of a step longer, and the others wait for it."""
    return lambda one: {
        name: share + (longer.get(name, 0.0) if one == rank else 0.3 * (name == "wait_s"))
        for name, share in EVEN.items()
    }


def lost(rows, panel=""):
    return {row["bar"]: row["start"] - row["end"] for row in rows if row["panel"].startswith(panel)}


@pytest.mark.parametrize(
    ("longer", "left"),
    [
        ({"forward_s": 0.3}, {"computing": 0.0, "data": 0.025, "optimizer": 0.0}),
        ({"data_s": 0.3}, {"computing": 0.0, "data": 0.025, "optimizer": 0.0}),
        ({"optimizer_s": 0.3}, {"computing": 0.0, "data": 0.025, "optimizer": 0.0}),
        ({"backward_s": 0.2, "data_s": 0.1}, {"computing": 0.0, "data": 0.025, "optimizer": 0.0}),
        ({}, {"computing": 0.0, "data": 0.025, "optimizer": 0.0, "other": 0.055}),
    ],
)
def test_a_late_rank_has_a_bar_of_what_it_costs_cut_from_where_it_is_late(make, root, longer, left):
    """Half of the 30 ms is the mean rank's own time, half its waiting; what is left is that of ranks that keep up."""
    steady(make, root, make.make_spec(1), 0.1, ALONE)
    steady(make, root, make.make_spec(2), 0.1, late(1, **longer))
    result = analyse(root)
    data = waterfall_data(result)
    rows = lost(data.rows)
    assert rows["late rank 1"] == pytest.approx(0.3)
    assert rows["wait for ranks"] == pytest.approx(0.02)
    assert {name: rows.get(name, 0.0) for name in left} == pytest.approx(left, abs=1e-9)
    for before, row in pairwise(data.rows[1:-1]):
        assert row["start"] == pytest.approx(before["end"])
    assert data.rows[-2]["end"] == pytest.approx(data.rows[-1]["end"]) == pytest.approx(0.5)
    assert data.notes[-1].startswith("A late rank's bar is what it takes longer")


def test_the_table_has_the_late_rank_too_and_sums_to_the_measured_step(make, root):
    steady(make, root, make.make_spec(1), 0.1, ALONE)
    steady(make, root, make.make_spec(2), 0.1, late(1, forward_s=0.3))
    result = analyse(root)
    table = waterfall_table(result)
    cells = dict(zip(table.header, table.rows[0], strict=True))
    assert (cells["Late ranks"], cells["Computing"], cells["Wait for ranks"]) == ("30.0 ms", "0 s", "2.00 ms")
    run, bars = fall(root, 2)
    told = [value for value in beyond_ideal(result, run, bars).values() if value is not None]
    assert bars.ideal_step_s + sum(told) == pytest.approx(bars.step_s, rel=1e-9)


def test_a_rank_that_is_late_by_uneven_work_has_its_bar_too(make, root):
    steady(make, root, make.make_spec(1), 0.1, ALONE)
    steady(make, root, make.make_spec(2), 0.1, late(1, forward_s=0.3))
    result = analyse(root)
    kinds = {"straggler": "imbalance"}
    uneven = [
        verdict.model_copy(
            update={
                "causes": tuple(
                    one.model_copy(update={"kind": kinds.get(one.kind, one.kind)}) for one in verdict.causes
                )
            }
        )
        for verdict in result.analysis.verdicts
    ]
    told = replace(result, analysis=result.analysis.model_copy(update={"verdicts": tuple(uneven)}))
    assert lost(waterfall_data(told).rows)["late rank 1"] == pytest.approx(0.3)


def test_without_a_late_rank_there_is_no_bar_no_column_and_no_note_of_it(make, root):
    steady(make, root, make.make_spec(1), 0.1, ALONE)
    steady(make, root, make.make_spec(2), 0.1, EVEN)
    data = waterfall_data(analyse(root))
    assert not [row for row in data.rows if row["bar"].startswith("late")]
    assert not [note for note in data.notes if "late rank" in note]
    assert "Late ranks" not in waterfall_table(analyse(root)).header


def test_a_late_rank_that_the_baseline_has_too_costs_what_is_beyond_that(make, root):
    steady(make, root, make.make_spec(2, "weak"), 0.1, late(1, forward_s=0.3))
    steady(make, root, make.make_spec(4, "weak"), 0.1, late(3, forward_s=0.3))
    rows = lost(waterfall_data(analyse(root)).rows)
    assert [rows[bar] for bar in ("late rank 3", "computing", "wait for ranks")] == pytest.approx([0, 0, 0], abs=1e-9)


def test_where_another_rank_is_late_in_each_panel_the_bar_names_none(make, root):
    steady(make, root, make.make_spec(1, "weak"), 0.1, ALONE)
    for size, rank in ((2, 1), (4, 3)):
        steady(make, root, make.make_spec(size, "weak"), 0.1, late(rank, forward_s=0.3))
    rows = [row for row in waterfall_data(analyse(root)).rows if row["bar"].startswith("late")]
    assert [(row["bar"], row["figure"]) for row in rows] == [("late ranks", "−30.0 %")] * 2


def ranks(*seconds):
    return tuple(RankStep(rank, 0, of_rank) for rank, of_rank in enumerate(seconds))


def test_ranks_that_wait_alike_or_whose_waiting_is_not_told_are_not_late():
    alike = {"forward": 0.05, "wait": 0.01}
    assert late_parts(ranks(alike, alike)) == {}
    assert late_parts(ranks({"forward": 0.05}, {"forward": 0.09})) == {}
    assert late_parts(()) == {}


def test_of_several_late_ranks_the_mean_is_told():
    late_one, other = {"forward": 0.06, "wait": 0.0}, {"forward": 0.02, "wait": 0.04}
    told = late_parts(ranks(late_one, late_one, other, other))
    assert (told["compute_s"], told["wait_s"]) == pytest.approx((0.02, 0.02))
    assert sum(told.values()) == pytest.approx(0.04)


def test_what_a_late_rank_takes_less_elsewhere_is_no_part_of_it():
    both = ranks({"data": 0.0, "forward": 0.05, "wait": 0.0}, {"data": 0.01, "forward": 0.02, "wait": 0.02})
    told = late_parts(both, 0.02)
    assert (told["compute_s"], told["wait_s"]) == pytest.approx((0.01, 0.01))
    assert "data_s" not in told


def test_no_more_waiting_is_a_late_ranks_than_the_mean_rank_has():
    others = ({"forward": 0.03, "wait": 0.02}, {"forward": 0.03, "wait": 0.02}, {"forward": 0.038, "wait": 0.012})
    told = late_parts(ranks({"forward": 0.05, "wait": 0.0}, *others), 0.02)
    assert told["compute_s"] == pytest.approx(0.005)
    assert told["wait_s"] == pytest.approx(0.013)


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


def clocked(hertz, *held):
    gpu = GpuSample(rank=0, throttle=held, sm_clock_hz=hertz)
    return [Sample(time_s=float(at), window="steady", node=0, gpus=(gpu,)) for at in range(3)]


SAME = {"data_s": 0.05, "forward_s": 0.3, "backward_s": 0.5, "optimizer_s": 0.1, "comm_exposed_s": 0.02, "wait_s": 0.01}
"""As `ALONE`, and a little communication."""


def test_computing_at_a_lower_clock_than_the_baselines_is_lost_by_clocks(make, root):
    make.write_launch(root, make.make_spec(1, "weak"), 0, 0.1, parts=ALONE, samples=clocked(1.5e9))
    hot = clocked(1.2e9, "hw_thermal_slowdown")
    make.write_launch(root, make.make_spec(2, "weak"), 0, 0.125, parts=SAME, samples=hot)
    data = waterfall_data(analyse(root))
    rows = lost(data.rows)
    assert (rows["clocks held down"], rows["computing"]) == pytest.approx((0.16, 0.0), abs=1e-9)
    assert data.notes == ("Clocks held down cost here what is beyond the baseline's.",)


@pytest.mark.parametrize("held", [("hw_thermal_slowdown",), ()])
def test_clocks_as_low_in_the_baseline_are_neither_lost_nor_gained(make, root, held):
    """Whether the verdict names them there or not; a run of another series has the study's best clock."""
    make.write_launch(root, make.make_spec(1, "weak", zero_stage=1), 0, 0.08, parts=ALONE, samples=clocked(1.5e9))
    make.write_launch(root, make.make_spec(1, "weak"), 0, 0.1, parts=ALONE, samples=clocked(1.2e9, *held))
    hot = clocked(1.2e9, "hw_thermal_slowdown")
    make.write_launch(root, make.make_spec(2, "weak"), 0, 0.1, parts=SAME, samples=hot)
    result = analyse(root)
    told = {verdict.run_id: [one.kind for one in verdict.causes] for verdict in result.analysis.verdicts}
    assert told[fall(root, 2)[0].run_id] == ["throttled"]
    rows = lost(waterfall_data(result).rows)
    assert (rows["clocks held down"], rows.get("computing", 0.0)) == pytest.approx((0.0, 0.0), abs=1e-9)


def test_clocks_held_down_in_the_baseline_alone_are_gained_and_hide_no_sharing(make, root):
    """The baseline takes 80 ms of computing at 1.2 of 1.5 GHz, the run as much at 1.5 GHz: 16 ms are of sharing."""
    hot = clocked(1.2e9, "hw_thermal_slowdown")
    make.write_launch(root, make.make_spec(1, "weak"), 0, 0.1, parts=ALONE, samples=hot)
    make.write_launch(root, make.make_spec(2, "weak"), 0, 0.1, parts=SAME, samples=clocked(1.5e9))
    result = analyse(root)
    told = {one.run_id: [cause.kind for cause in one.causes] for one in result.analysis.verdicts}
    assert "contention" in told[fall(root, 2)[0].run_id]
    rows = lost(waterfall_data(result).rows)
    shown = [rows[bar] for bar in ("shared machine", "clocks held down")]
    assert shown == pytest.approx([0.16, -0.16], abs=1e-9)


def test_a_reason_in_the_baseline_alone_takes_clocks_out_of_both(make, root):
    """Both run at 1.2 GHz, of which only the baseline's samples say why: nothing is shared, and nothing named."""
    make.write_launch(root, make.make_spec(1, "weak", zero_stage=1), 0, 0.08, parts=ALONE, samples=clocked(1.5e9))
    hot = clocked(1.2e9, "hw_thermal_slowdown")
    make.write_launch(root, make.make_spec(1, "weak"), 0, 0.1, parts=ALONE, samples=hot)
    make.write_launch(root, make.make_spec(2, "weak"), 0, 0.1, parts=SAME, samples=clocked(1.2e9))
    result = analyse(root)
    told = {one.run_id: [cause.kind for cause in one.causes] for one in result.analysis.verdicts}
    assert told[fall(root, 2)[0].run_id] == []
    rows = lost(waterfall_data(result).rows)
    assert (rows["clocks held down"], rows.get("computing", 0.0)) == pytest.approx((0.0, 0.0), abs=1e-9)


def test_a_small_micro_batch_is_told_apart_from_clocks_that_the_baseline_has_too(make, root):
    """At 1.2 of 1.5 GHz computing takes 60 ms, half of the baseline's is 40: without what clocks cost 48 and 32."""
    hot = clocked(1.2e9, "hw_thermal_slowdown")
    make.write_launch(root, make.make_spec(1, zero_stage=1), 0, 0.08, parts=ALONE, samples=clocked(1.5e9))
    make.write_launch(root, make.make_spec(1), 0, 0.1, parts=ALONE, samples=hot)
    slower = {**SAME, "forward_s": 0.3, "backward_s": 0.45, "comm_exposed_s": 0.05, "wait_s": 0.05}
    make.write_launch(root, make.make_spec(2), 0, 0.08, parts=slower, samples=hot)
    result = analyse(root)
    verdict = next(one for one in result.analysis.verdicts if one.run_id == fall(root, 2)[0].run_id)
    told = {one.kind: one.seconds.median for one in verdict.causes}
    assert told == pytest.approx({"micro_batch": 0.016, "throttled": 0.012})
    rows = lost(waterfall_data(result).rows)
    shown = [rows[bar] for bar in ("small micro-batch", "clocks held down", "computing")]
    assert shown == pytest.approx([0.2, 0.05, 0.0], abs=1e-9)


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


def test_of_more_runs_than_are_drawn_the_figure_says_how_many_and_the_table_has_all(make, root):
    for size in range(1, 7):
        steady(make, root, make.make_spec(size, "weak"), 0.1, EVEN if size > 1 else ALONE)
    result = analyse(root)
    data = waterfall_data(result)
    assert data.notes == ("4 of 5 runs are drawn; the table has all.",)
    assert sorted(panel.split(": ")[-1] for panel in data.panels) == [f"{size} processes" for size in (3, 4, 5, 6)]
    assert len(waterfall_table(result).rows) == 5
