"""Exposed communication by two methods: agreement is silent, a difference is a finding."""

import json

import pytest

from vitscale.analysis.analyse import analyse
from vitscale.report.tables import split_table

PARTS = {"forward_s": 0.3, "backward_s": 0.5, "comm_exposed_s": 0.15, "wait_s": 0.05}


def study(make, tmp_path, silent_steps):
    """Launches of a step of 100 ms, blocked for 20; `silent_steps` is how long it takes without collectives."""
    root = make.write_study(tmp_path)
    for launch, silent_s in enumerate(silent_steps):
        folder = make.write_launch(root, make.make_spec(2), launch, 0.1, parts=PARTS)
        path = folder / "manifest.json"
        manifest = json.loads(path.read_text())
        for device in manifest["devices"]:
            device["silence"] = {"blocks": 3, "step_s": 0.1, "silent_step_s": silent_s}
        path.write_text(json.dumps(manifest))
    return analyse(root)


def differs(result):
    return [one for one in result.analysis.findings if one.kind == "exposed_differs"]


def test_methods_that_agree_say_nothing_and_both_are_shown(make, tmp_path):
    result = study(make, tmp_path, (0.080, 0.082, 0.078))
    assert differs(result) == []
    assert result.analysis.runs[0].silent_share.median == pytest.approx(0.2)
    assert split_table(result).header[-1] == "Goes without collectives [95 %]"
    assert split_table(result).rows[0][-1].startswith("20.0 % [15.0, 25.0 %]")


@pytest.mark.parametrize(("silent_steps", "hint"), [((0.7e-1,) * 3, "slows computing"), ((0.9e-1,) * 3, "other load")])
def test_methods_that_differ_are_a_finding_that_says_which_is_trusted(make, tmp_path, silent_steps, hint):
    (finding,) = differs(study(make, tmp_path, silent_steps))
    assert "20.0 % [20.0, 20.0] of the step by arrivals" in finding.evidence
    assert "rests on arrivals" in finding.evidence
    assert hint in finding.hint


def test_what_differs_no_more_than_launches_do_is_no_finding(make, tmp_path):
    assert differs(study(make, tmp_path, (0.05, 0.09, 0.07))) == []


def test_without_such_steps_there_is_nothing_to_compare(make, tmp_path):
    root = make.write_study(tmp_path)
    make.write_launch(root, make.make_spec(2), parts=PARTS)
    result = analyse(root)
    assert result.analysis.runs[0].silent_share is None
    assert "Goes without collectives [95 %]" not in split_table(result).header
