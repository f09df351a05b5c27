"""Exposed communication by three methods: agreement is silent, a difference is a finding."""

import json
from itertools import zip_longest

import pytest

from vitscale.analysis.analyse import analyse
from vitscale.report.tables import split_table
from vitscale.report.untold import methods

PARTS = {"forward_s": 0.3, "backward_s": 0.5, "comm_exposed_s": 0.15, "wait_s": 0.05}


BESIDE = {**PARTS, "comm_exposed_s": None, "wait_s": None}
"""Of an engine that sends from a stream of its own."""


def study(make, tmp_path, silent_steps=(), profiled=(), parts=PARTS, pairs=3):
    """Launches of a step of 100 ms, blocked for 20.

    `silent_steps` is how long it takes without collectives, in so many `pairs` of blocks; `profiled` by rank what the
    profiler saw nothing hide.
    """
    root = make.write_study(tmp_path)
    for launch, (silent_s, exposed_s) in enumerate(zip_longest(silent_steps, profiled)):
        folder = make.write_launch(root, make.make_spec(2), launch, 0.1, parts=parts)
        path = folder / "manifest.json"
        manifest = json.loads(path.read_text())
        for device in manifest["devices"]:
            if silent_s is not None:
                device["silence"] = {"blocks": pairs, "step_s": 0.1, "silent_step_s": silent_s}
            if exposed_s is not None and exposed_s[device["rank"]] is not None:
                told = exposed_s[device["rank"]]
                device["overlap"] = {"steps": 2, "step_s": 0.2, "comm_and_wait_s": told + 0.01, "overlapped_s": 0.01}
        path.write_text(json.dumps(manifest))
    return analyse(root)


def differs(result):
    return [one for one in result.analysis.findings if one.kind == "exposed_differs"]


def test_methods_that_agree_say_nothing_and_both_are_shown(make, tmp_path):
    result = study(make, tmp_path, (0.080, 0.082, 0.078))
    assert differs(result) == []
    assert result.analysis.runs[0].idle_link_share is None
    assert result.analysis.runs[0].silent_share.median == pytest.approx(0.2)
    assert split_table(result).header[-1] == "Goes without collectives [95 %]"
    assert split_table(result).rows[0][-1].startswith("20.0 % [15.0, 25.0 %]")


@pytest.mark.parametrize(("silent_steps", "hint"), [((0.7e-1,) * 3, "slows computing"), ((0.9e-1,) * 3, "other load")])
def test_methods_that_differ_are_a_finding_that_says_which_is_trusted(make, tmp_path, silent_steps, hint):
    (finding,) = differs(study(make, tmp_path, silent_steps))
    assert "shorter (by arrivals 20.0 % [20.0, 20.0])" in finding.evidence
    assert "profiler" not in finding.evidence
    assert "rests on arrivals" in finding.evidence
    assert hint in finding.hint


def test_a_profiler_that_agrees_is_shown_beside_the_others(make, tmp_path):
    """Its steps take twice as long: shares are compared, of the mean rank."""
    result = study(make, tmp_path, (0.08,) * 3, [(0.06, 0.02), (0.05, 0.03), (0.04, 0.04)])
    assert differs(result) == []
    assert result.analysis.runs[0].profiled_share.median == pytest.approx(0.2)
    assert split_table(result).header[-1] == "Not hidden, by the profiler [95 %]"
    assert split_table(result).rows[0][-1].startswith("20.0 %")


@pytest.mark.parametrize(("exposed_s", "hint"), [(0.06, "between operators"), (0.02, "slows computing, of which")])
def test_a_profiler_that_differs_is_a_finding_with_all_three_figures(make, tmp_path, exposed_s, hint):
    (finding,) = differs(study(make, tmp_path, (0.08,) * 3, [(exposed_s, exposed_s)] * 3))
    assert "without collectives is 20.0 % [20.0, 20.0] shorter (by arrivals 20.0 % [20.0, 20.0])" in finding.evidence
    assert f"profiler sees {50 * 10 * exposed_s:.1f} %" in finding.evidence
    assert hint in finding.hint


def test_ranks_of_which_one_does_not_tell_have_no_mean(make, tmp_path):
    result = study(make, tmp_path, (), [(0.06, None)] * 3)
    assert result.analysis.runs[0].profiled_share is None
    assert differs(result) == []


def test_what_differs_no_more_than_launches_do_is_no_finding(make, tmp_path):
    assert differs(study(make, tmp_path, (0.05, 0.09, 0.07))) == []


def test_without_such_steps_there_is_nothing_to_compare(make, tmp_path):
    root = make.write_study(tmp_path)
    make.write_launch(root, make.make_spec(2), parts=PARTS)
    result = analyse(root)
    assert result.analysis.runs[0].silent_share is result.analysis.runs[0].profiled_share is None
    assert "Goes without collectives [95 %]" not in split_table(result).header


@pytest.mark.parametrize(("silent_s", "differs_"), [(0.075, False), (0.065, True)])
def test_of_one_launch_only_a_tenth_of_the_step_is_a_difference(make, tmp_path, silent_s, differs_):
    """Blocked for 20 ms of 100; a step without collectives is 25 or 35 ms shorter."""
    assert bool(differs(study(make, tmp_path, (silent_s,)))) == differs_


def test_a_single_launch_with_few_pairs_has_too_little_to_judge_and_says_so(make, tmp_path):
    result = study(make, tmp_path, (0.04,), [(0.03, 0.03)], pairs=2)
    assert differs(result) == []
    assert "too few steps without collectives to judge by in the one launch of" in methods(result)


@pytest.mark.parametrize(("pairs", "differs_"), [(3, True), (1, False)])
def test_few_pairs_differ_where_the_whole_interval_is_beyond_the_difference(make, tmp_path, pairs, differs_):
    """By 6, 7 and 8 % of the step: 4.5 to 9.5 % with 95 %."""
    result = study(make, tmp_path, (0.074, 0.073, 0.072), pairs=pairs)
    assert bool(differs(result)) == differs_
    assert "too few" not in methods(result)


def test_few_pairs_that_differ_by_a_lot_in_every_launch_are_a_finding(make, tmp_path):
    (finding,) = differs(study(make, tmp_path, (0.05, 0.051, 0.049), pairs=1))
    assert "slows computing" in finding.hint


def causes(result):
    return [one for verdict in result.analysis.verdicts for one in verdict.causes]


def test_where_arrivals_tell_nothing_the_steps_without_collectives_do(make, tmp_path):
    result = study(make, tmp_path, (0.080, 0.081, 0.079), [(0.05, 0.04)] * 3, parts=BESIDE)
    (cause,) = causes(result)
    assert (cause.kind, cause.override) == ("comm_and_wait", "global_batch=128")
    assert cause.seconds.median == pytest.approx(0.02)
    assert cause.evidence == (
        "A step without collectives is 20.0 ms shorter, and the profiler sees 22.5 ms that nothing hides; "
        "the first is what the step would save."
    )
    assert differs(result) == []


def test_else_the_profiler_does(make, tmp_path):
    (cause,) = causes(study(make, tmp_path, (), [(0.05, 0.03)] * 3, parts=BESIDE))
    assert (cause.kind, cause.seconds.median) == ("comm_and_wait", pytest.approx(0.02))
    assert cause.evidence == "The profiler sees 20.0 ms that nothing hides."


def test_the_two_that_are_left_are_held_against_each_other(make, tmp_path):
    (finding,) = differs(study(make, tmp_path, (0.08,) * 3, [(0.08, 0.08)] * 3, parts=BESIDE))
    assert "20.0 % [20.0, 20.0] shorter; the profiler sees 40.0 %" in finding.evidence
    assert finding.evidence.endswith(
        "rests on the steps without collectives: what they lack is what a step would save."
    )
    assert "between operators" in finding.hint


def test_neither_is_a_cause_where_arrivals_tell(make, tmp_path):
    kinds = {cause.kind for cause in causes(study(make, tmp_path, (0.08,) * 3, [(0.04, 0.04)] * 3))}
    assert "communication" in kinds
    assert "comm_and_wait" not in kinds
