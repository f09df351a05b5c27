"""Two results folders: what was different, and what that changed."""

import json

import pytest

from vitscale.analysis.compare import compare
from vitscale.errors import ResultsError
from vitscale.statistics import ratio_interval

ONE = [0.1000, 0.1001, 0.1002]


@pytest.fixture
def folders(make, tmp_path):
    """Write A and B from lists of (spec, times) and compare them."""

    def write(a, b, options_b=None, measure_b=None):
        for name, runs, options, measure in (("a", a, {}, {}), ("b", b, options_b or {}, measure_b or {})):
            root = make.write_study(tmp_path / name, **measure)
            for spec, times in runs:
                for launch, step_s in enumerate(times):
                    make.write_launch(root, spec, launch, step_s, **options)
        return compare(tmp_path / "a", tmp_path / "b")

    return write


def test_the_same_folder_twice_is_no_change(make, folders):
    runs = [(make.make_spec(1), ONE), (make.make_spec(2), ONE)]
    found = folders(runs, runs)
    assert not found.changed
    assert (found.configuration, found.versions, found.devices) == ((), (), ())
    assert [(run.verdict, run.ratio.median) for run in found.runs] == [("no difference detected", 1.0)] * 2


@pytest.mark.parametrize(("factor", "verdict"), [(1.1, "slower"), (0.9, "faster")])
def test_a_ratio_whose_interval_excludes_1_is_a_change(make, folders, factor, verdict):
    spec, times = make.make_spec(1), [round(value * factor, 9) for value in ONE]
    found = folders([(spec, ONE)], [(spec, times)])
    assert found.changed
    assert found.runs[0].verdict == verdict
    assert found.runs[0].ratio == ratio_interval(times, ONE)
    assert found.runs[0].ratio.median == pytest.approx(factor)


def test_one_launch_cannot_tell(make, folders):
    found = folders([(make.make_spec(1), [0.1])], [(make.make_spec(1), [0.5])])
    assert found.runs[0].verdict == "cannot tell"
    assert not found.changed


def test_runs_in_one_folder_only_are_named(make, folders):
    found = folders(
        [(make.make_spec(1), ONE), (make.make_spec(2), ONE)], [(make.make_spec(1), ONE), (make.make_spec(4), ONE)]
    )
    assert [(run.label, run.verdict) for run in found.runs] == [
        ("strong, 1 process", "no difference detected"),
        ("strong, 2 processes", "only in A"),
        ("strong, 4 processes", "only in B"),
    ]
    assert not found.changed


def test_runs_are_matched_by_axes_where_a_setting_gave_them_another_run_id(make, folders):
    def runs(lr, factor):
        optimizer = make.make_spec().optimizer.model_copy(update={"lr": lr})
        return [
            (make.make_spec(1, zero_stage=stage, optimizer=optimizer), [value * (1 + stage) * factor for value in ONE])
            for stage in (0, 1)
        ]

    found = folders(runs(0.001, 1), runs(0.01, 1.5))
    assert len(found.runs) == 2
    assert [run.ratio.median for run in found.runs] == pytest.approx([1.5, 1.5])
    assert all(run.run_id_a != run.run_id_b for run in found.runs)


def test_another_batch_is_another_run(make, folders):
    other = make.make_spec(1, global_batch=128, micro_batch=128)
    found = folders([(make.make_spec(1), ONE)], [(other, ONE)])
    assert [run.verdict for run in found.runs] == ["only in A", "only in B"]


def test_settings_and_devices_that_differ_are_listed_with_both_values(make, folders):
    runs = [(make.make_spec(1), ONE)]
    found = folders(runs, runs, {"device": "Other CPU"}, {"launches": 5, "seed": 1})
    assert [(one.key, one.a, one.b) for one in found.configuration] == [
        ("measure.launches", 3, 5),
        ("measure.seed", None, 1),
    ]
    assert [(one.key, one.a, one.b) for one in found.devices] == [("name", ["Example CPU"], ["Other CPU"])]


def test_versions_that_differ_are_listed(make, folders, tmp_path):
    runs = [(make.make_spec(1), ONE)]
    folders(runs, runs)
    for path in (tmp_path / "b").rglob("manifest.json"):
        path.write_text(path.read_text().replace('"2.10.0"', '"2.11.0"'))
    found = compare(tmp_path / "a", tmp_path / "b")
    assert [(one.key, one.a, one.b) for one in found.versions] == [("torch", ["2.10.0"], ["2.11.0"])]


def test_it_is_json(make, folders):
    found = folders([(make.make_spec(1), ONE)], [(make.make_spec(1), ONE), (make.make_spec(2), [0.1])])
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert document["changed"] is False
    assert document["runs"][0]["ratio"]["median"] == 1.0
    assert document["runs"][1] == {**document["runs"][1], "run_id_a": None, "ratio": None, "verdict": "only in B"}


def test_a_folder_that_is_none_is_refused(make, tmp_path):
    with pytest.raises(ResultsError, match="not a results folder"):
        compare(make.write_study(tmp_path / "a"), tmp_path / "b")
