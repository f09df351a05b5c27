"""What the page says: figures kept readable, protocols apart, and how it was measured."""

import json
from dataclasses import replace

import pytest

from vitscale.analysis.analyse import analyse
from vitscale.analysis.result import LossCurve
from vitscale.analysis.start_up import StartUp
from vitscale.report.document import document
from vitscale.report.figures import draw
from vitscale.report.figures.look import COLOURS
from vitscale.report.method import method
from vitscale.report.page import render
from vitscale.report.rows import MOST_KEYS
from vitscale.report.rows.curves import MOST_POINTS, loss_data, thinned
from vitscale.report.rows.scaling import scaling_data
from vitscale.report.rows.split import MOST_BARS, split_data
from vitscale.report.tables import batch_table, gain_table, split_table, throughput_table


@pytest.fixture(scope="module")
def many(make, tmp_path_factory):
    """Twelve series of two protocols, 48 runs."""
    root = make.write_study(tmp_path_factory.mktemp("many"))
    for protocol in ("strong", "weak"):
        for value in range(12):
            for size in (1, 4):
                spec = make.make_spec(size, protocol, deepspeed={"knob": value})
                make.write_launch(root, spec, 0, (0.1 + value / 100) / size)
    return analyse(root)


def test_protocols_never_share_a_panel_and_equal_settings_share_a_colour(result):
    data = scaling_data(result, "images_per_s")
    by_panel = {}
    for row in data.rows:
        by_panel.setdefault(row["panel"], set()).add(row["label"].split(",")[0])
    assert by_panel == {"strong: same global batch": {"strong"}, "weak: same work per device": {"weak"}}
    assert data.keys == ("zero_stage 0", "zero_stage 1")


def test_lines_and_bars_pass_by_what_is_not_valid_or_has_no_interval(result):
    data = scaling_data(result, "speedup")
    hollow = [row for row in data.rows if row["kind"] == "run" and not row["valid"]]
    assert [row["world_size"] for row in hollow] == [4]
    assert hollow[0]["shown"].endswith("not valid")
    spec = next(one.spec for one in draw(result) if one.name == "speedup")
    filters = [[step["filter"] for step in layer["transform"]] for layer in spec["spec"]["layer"]]
    assert not hollow[0]["joined"]
    assert [one[1:] for one in filters[2:]] == [
        ["datum.joined"],
        ["datum.low !== null"],
        ["datum.valid"],
        ["!datum.valid"],
    ]


def test_a_line_joins_one_run_of_each_world_size(make, tmp_path):
    root = make.write_study(tmp_path)
    for size, nodes in ((1, 1), (2, 2), (2, 1)):
        make.write_launch(root, make.make_spec(size, nodes=nodes, ranks_per_node=size // nodes), 0, 0.1 * nodes / size)
    data = scaling_data(analyse(root), "speedup")
    runs = [row for row in data.rows if row["kind"] == "run"]
    assert {(row["label"], row["joined"]) for row in runs} == {
        ("strong, 1 process", True),
        ("strong, 2 processes", True),
        ("strong, 2 processes on 2 nodes", False),
    }
    assert any("fewest nodes" in note for note in data.notes)


def test_the_ideal_line_starts_at_each_baseline(result):
    data = scaling_data(result, "speedup")
    ideal = [row for row in data.rows if row["kind"] == "ideal"]
    assert {(row["world_size"], row["y"]) for row in ideal if row["panel"].startswith("strong")} == {(1, 1), (4, 4)}
    assert {(row["world_size"], row["y"]) for row in ideal if row["panel"].startswith("weak")} == {(1, 1), (2, 2)}
    assert {row["y"] for row in scaling_data(result, "efficiency").rows if row["kind"] == "ideal"} == {1.0}


def test_the_split_of_a_bar_ends_at_one_and_what_was_not_timed_is_said(result):
    data = split_data(result)
    ends = {}
    for row in data.rows:
        ends[row["label"]] = row["end"]
    assert list(ends.values()) == pytest.approx([1.0] * len(ends))
    assert "Timed in some runs only: exposed communication, wait for slower ranks, launch gap" in data.notes[0]
    assert "n/a" in split_table(result).rows[0]


def test_parts_that_exceed_the_step_are_drawn_as_they_are(make, tmp_path):
    root = make.write_study(tmp_path)
    make.write_launch(root, make.make_spec(1), parts={"forward_s": 0.9, "backward_s": 0.3})
    data = split_data(analyse(root))
    assert [row["part"] for row in data.rows] == ["forward", "backward"]
    assert data.rows[-1]["end"] == pytest.approx(1.2, abs=1e-3)
    assert "A bar beyond 100 %" in " ".join(data.notes)
    assert "Not timed in any run: data, optimizer" in data.notes[0]


def test_many_series_are_drawn_in_few_colours_and_the_rest_in_grey_below(many):
    data = scaling_data(many, "images_per_s")
    assert len(data.keys) == MOST_KEYS - 1 == len(COLOURS) - 1
    assert data.others == "5 further series"
    keys = [row["key"] for row in data.rows]
    assert len(keys) == 48
    assert keys[:20] == ["5 further series"] * 20
    assert "5 further series are grey" in " ".join(data.notes)


def test_many_runs_leave_as_many_bars_of_each_protocol(many):
    data = split_data(many)
    labels = {row["label"] for row in data.rows}
    assert len(labels) == MOST_BARS
    assert sum(label.startswith("weak") for label in labels) == 12
    assert all(label.endswith("4 processes") for label in labels)
    assert data.notes[0].startswith("24 of 48 runs are drawn")


def test_many_curves_are_capped_and_long_ones_thinned_between_their_ends(many):
    steps = 1000
    long = [LossCurve(one.run_id, list(range(steps)), list(range(steps)), [1.0] * steps) for one in many.losses]
    data = loss_data(replace(many, losses=tuple(long)))
    assert len(data.keys) == MOST_KEYS
    first = [row["images"] for row in data.rows if (row["panel"], row["key"]) == (data.rows[0]["panel"], data.keys[0])]
    assert len(first) == MOST_POINTS
    assert (first[0], first[-1]) == (0, steps - 1)
    assert len(data.notes) == 2


def test_a_loss_that_is_not_finite_is_no_point():
    curve = LossCurve("run", [0, 1, 2], [1, 2, 3], [1.0, float("nan"), None])
    assert thinned(curve) == [(1, 1.0)]


def test_missing_figures_are_na_with_the_reason_and_never_zero(result):
    rows = {row[0]: row for row in throughput_table(result).rows}
    assert rows["weak, zero_stage 0, 4 processes (not valid)"][2:4] == ("n/a (not started)", "n/a (not started)")
    assert rows["strong, zero_stage 1, 4 processes (not valid)"][2] == "n/a (no launch with status ok)"


def test_a_baseline_is_named_and_not_compared_with_itself(result):
    rows = [row[1:] for row in gain_table(result, "speedup").rows]
    assert rows[0] == ("1", "1", "baseline")
    assert rows[1] == ("2", "1", "1.85x [1.76x, 2.00x]")


def test_the_batch_identity_is_written_out(result):
    assert batch_table(result).rows[1][1] == "32 × 1 × 2 = 64"
    for row in batch_table(result).rows:
        left, right = row[1].split(" = ")
        a, b, c = (int(part) for part in left.split(" × "))
        assert a * b * c == int(right)


def test_how_it_was_measured_comes_from_the_records(result):
    facts = dict(method(result))
    assert facts["Launches"].startswith("0 to 3 launches that count per run")
    assert facts["Rounds"] == (
        "9 rounds; world sizes in the order they were started: 1, 2, 4, 1, 2, 4, 1, 2, 4 (interleaved)."
    )
    assert facts["Warm-up and steady window"] == (
        "2 warm-up steps, recorded and not counted; 10 steady steps per launch."
    )
    assert facts["Versions"] == "deepspeed 0.18.3, python 3.11.7, torch 2.10.0"
    assert "2 ranks on 1 node (gloo)" in facts["Layout"]
    assert "Student's t on the logarithms below 6 launches" in facts["Interval"]
    assert "CPU threads per rank" not in facts


def test_the_start_up_of_each_world_size_is_told_with_its_parts(result):
    begun = StartUp(total_s=13.0, import_s=6.0, group_s=3.0, timing_s=2.0, setup_s=1.5, data_s=0.5)
    first, *others = result.analysis.runs
    runs = (first.model_copy(update={"start_up": begun}), *others)
    told = dict(method(replace(result, analysis=result.analysis.model_copy(update={"runs": runs}))))["Start-up"]
    ranks = first.world_size
    assert told == (
        f"{ranks} rank{'' if ranks == 1 else 's'} 13.0 s (libraries 6.00 s, process group 3.00 s, links and devices "
        "timed 2.00 s, model and engine 1.50 s, images 500 ms): from the start of the processes to the first step, "
        "medians; in no step."
    )
    assert "Start-up" not in dict(method(result))


def test_rounds_that_do_not_take_turns_are_said_to(make, tmp_path):
    root = make.write_study(tmp_path)
    make.write_launch(root, make.make_spec(1), 0)
    make.write_launch(root, make.make_spec(2), 1)
    assert "not interleaved" in dict(method(analyse(root)))["Rounds"]


def test_errors_and_warnings_come_first_and_again_with_the_rest(result):
    told = document(result, [])
    assert {one.severity for one in told.alerts} == {"warning"}
    assert set(told.alerts) < set(told.findings)
    assert len(told.findings) == len(result.analysis.findings)


def test_parity_of_engines_is_stated_before_any_figure(make, tmp_path):
    root = make.write_study(tmp_path)
    sound = {"ok": True, "first_step": None, "worst_loss": 1.3e-7, "worst_weight": 2e-6, "tensor": "head.bias"}
    wrong = {"ok": False, "first_step": 3, "worst_loss": 1e-3, "worst_weight": None, "tensor": None}
    for engine, told in (("ddp", sound), ("fsdp", wrong)):
        spec = make.make_spec(1, engine=engine, zero_stage=None)
        folder = make.write_launch(root, spec, 0)
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**manifest, "parity": told}))
    found = analyse(root)
    drawings = draw(found)
    told = document(found, drawings)
    assert [row[1:4] for row in told.parity.rows] == [
        ("like for like", "1.3e-07", "2.0e-06"),
        ("not comparable from step 3 on", "1.0e-03", "n/a"),
    ]
    page = render(told, drawings)
    assert page.index("like for like?") < page.index('id="throughput"')
    assert [run.valid for run in found.analysis.runs] == [True, False]


def test_panels_are_in_the_protocols_order_also_where_their_headings_take_two_lines(make, tmp_path):
    root = make.write_study(tmp_path)
    for protocol in ("weak", "strong_fixed_micro", "strong"):
        for size in (1, 2):
            make.write_launch(root, make.make_spec(size, protocol), 0, 0.1)
    spec = next(one.spec for one in draw(analyse(root)) if one.name == "speedup")
    drawn = {row["panel"] for row in spec["data"]["values"]}
    assert set(spec["facet"]["sort"]) == drawn
    assert [heading.partition(":")[0] for heading in spec["facet"]["sort"]] == ["strong", "strong_fixed_micro", "weak"]
