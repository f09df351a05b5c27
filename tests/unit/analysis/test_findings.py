"""Each finding appears where its condition holds, and only there."""

import pytest

from vitscale.analysis.analyse import analyse

STEADY = [0.1000, 0.1001, 0.1002]


@pytest.fixture
def root(make, tmp_path):
    return make.write_study(tmp_path / "study", "Does a second process help?")


def write(make, root, spec, times, **options):
    for launch, step_s in enumerate(times):
        make.write_launch(root, spec, launch, step_s, **options)


def found(root, kind):
    return [finding for finding in analyse(root).analysis.findings if finding.kind == kind]


def kinds(root):
    return {finding.kind for finding in analyse(root).analysis.findings}


def half(times):
    return [value / 2 for value in times]


def test_a_clean_study_has_no_finding(make, root):
    write(make, root, make.make_spec(1), STEADY)
    write(make, root, make.make_spec(2), half(STEADY))
    assert kinds(root) == set()


def test_a_wide_interval_is_unstable(make, root):
    write(make, root, make.make_spec(1), [0.10, 0.12, 0.11])
    (finding,) = found(root, "unstable")
    assert "110 ms" in finding.evidence
    assert "3 launches" in finding.evidence


def test_drift_within_launches_is_unstable(make, root):
    write(make, root, make.make_spec(1), [lambda rank, step: 0.1 if step < 7 else 0.107] * 3)
    (finding,) = found(root, "unstable")
    assert "7.0 % slower" in finding.evidence
    write(make, root, make.make_spec(2), [lambda rank, step: 0.05 if step < 7 else 0.052] * 3)
    assert len(found(root, "unstable")) == 1


def test_fewer_than_three_launches_are_too_few(make, root):
    write(make, root, make.make_spec(1), STEADY[:2])
    write(make, root, make.make_spec(2), half(STEADY))
    (finding,) = found(root, "too_few_launches")
    assert len(finding.runs) == 1
    assert "1 run of 2" in finding.evidence


def test_overlapping_neighbours_are_no_difference(make, root):
    write(make, root, make.make_spec(1), [0.100, 0.104, 0.102])
    write(make, root, make.make_spec(2), [0.101, 0.105, 0.103])
    (finding,) = found(root, "no_difference")
    assert "No difference detected between strong, 1 process (" in finding.evidence
    assert finding.severity == "note"


def test_series_that_differ_in_one_axis_are_compared_at_equal_size(make, root):
    for stage in (0, 1):
        write(make, root, make.make_spec(1, zero_stage=stage), [0.100, 0.104, 0.102])
        write(make, root, make.make_spec(2, zero_stage=stage), half(STEADY) if stage else [0.09, 0.0901, 0.0902])
    (finding,) = found(root, "no_difference")
    assert "zero_stage 0, 1 process" in finding.evidence
    assert "zero_stage 1, 1 process" in finding.evidence


def test_series_that_differ_in_two_axes_are_not_compared(make, root):
    for stage, precision in ((0, "fp32"), (1, "bf16")):
        write(make, root, make.make_spec(1, zero_stage=stage, precision=precision), STEADY)
    assert kinds(root) == set()


def test_a_gain_that_may_be_large_is_not_called_none(make, root):
    write(make, root, make.make_spec(1), [0.098, 0.100, 0.104])
    write(make, root, make.make_spec(2), [0.096, 0.098, 0.102])
    assert kinds(root) == {"no_difference"}


def test_no_gain_from_more_processes_does_not_scale(make, root):
    write(make, root, make.make_spec(1), STEADY)
    write(make, root, make.make_spec(2), [value / 1.03 for value in STEADY])
    (finding,) = found(root, "does_not_scale")
    assert "from 1 to 2 processes throughput is only 1.03x" in finding.evidence


def test_poor_efficiency_does_not_scale(make, root):
    write(make, root, make.make_spec(1), STEADY)
    write(make, root, make.make_spec(4), [value / 1.6 for value in STEADY])
    (finding,) = found(root, "does_not_scale")
    assert "efficiency is 40.0 %" in finding.evidence


def test_without_intervals_nothing_is_said_about_differences(make, root):
    write(make, root, make.make_spec(1), [0.1])
    write(make, root, make.make_spec(2), [0.1])
    assert kinds(root) == {"too_few_launches"}


def test_mixed_devices_and_too_many_ranks_are_found(make, root):
    write(make, root, make.make_spec(1), STEADY, device="A")
    write(make, root, make.make_spec(2, oversubscribed=True), half(STEADY), device="B")
    assert kinds(root) == {"mixed_devices", "more_ranks_than_cores"}
    assert "(A, B)" in found(root, "mixed_devices")[0].evidence


def test_an_outlier_is_flagged_and_kept(make, root):
    write(make, root, make.make_spec(1), [0.1, 0.101, 0.102, 0.1005, 0.2])
    (finding,) = found(root, "outlier")
    assert "launch 4: 200 ms" in finding.evidence
    result = analyse(root)
    assert [one.outlier for one in result.launches] == [False] * 4 + [True]
    assert result.analysis.runs[0].launches == 5


def test_a_launch_unlike_its_twins_by_less_than_5_percent_is_no_outlier(make, root):
    write(make, root, make.make_spec(1), [0.1, 0.10001, 0.102])
    assert "outlier" not in kinds(root)


@pytest.mark.parametrize(
    ("status", "severity", "words"),
    [
        ("oom", "warning", "ran out of memory"),
        ("timeout", "error", "time limit"),
        ("failed", "error", "1 launch failed"),
    ],
)
def test_a_run_without_any_ok_launch_failed_with_its_reason(make, root, status, severity, words):
    make.write_launch(root, make.make_spec(1), status=status, reason="what the kernel said")
    (finding,) = found(root, "run_failed")
    assert finding.severity == severity
    assert words in finding.evidence
    assert "what the kernel said" in finding.evidence
    assert finding.hint


def test_a_failure_made_good_is_a_note(make, root):
    write(make, root, make.make_spec(1), STEADY)
    make.write_launch(root, make.make_spec(1), 3, status="failed", reason="port taken")
    (finding,) = found(root, "run_failed")
    assert finding.severity == "note"


@pytest.mark.parametrize("status", [None, "killed"])
def test_what_was_cut_off_is_unfinished(make, root, status):
    make.write_launch(root, make.make_spec(1), status=status)
    (finding,) = found(root, "unfinished")
    assert "1 launch cut off" in finding.evidence
    assert "vitscale run" in finding.hint


def test_planned_and_not_started_is_unfinished(make, tmp_path):
    spec = make.make_spec(1)
    planned = {"run_id": spec.run_id, "series": spec.series, "spec": spec.model_dump(mode="json")}
    root = make.write_study(tmp_path, plan={"runs": [planned]})
    assert "1 run not started" in found(root, "unfinished")[0].evidence


def test_simulated_results_say_so(make, root):
    write(make, root, make.make_spec(1, simulated_device="h100"), STEADY, source="simulated")
    assert "simulated, not measured" in found(root, "simulated")[0].evidence


@pytest.mark.parametrize(("engine", "named"), [("deepspeed", True), ("accelerate_deepspeed", False)])
def test_a_knob_of_deepspeeds_engine_is_named_to_that_engine(make, root, engine, named):
    parts = {"data_s": 0.01, "forward_s": 0.2, "backward_s": 0.4, "optimizer_s": 0.06, "comm_exposed_s": 0.3}
    spec = make.make_spec(2, engine=engine, simulated_device="h100")
    write(make, root, spec, STEADY, source="simulated", parts=parts)
    (finding,) = found(root, "no_overlap")
    assert ("engine.overlap_reduce=true" in finding.hint) is named
    assert "zero_stage=1 or 2" in finding.hint


def test_torn_and_altered_records_of_a_finished_launch_are_found(make, root):
    folder = make.write_launch(root, make.make_spec(1))
    path = folder / "steps.rank000.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    assert "launch0/steps.rank000.jsonl" in found(root, "torn_records")[0].evidence
    assert found(root, "altered_records")[0].severity == "error"


def test_a_torn_unfinished_launch_is_only_unfinished(make, root):
    folder = make.write_launch(root, make.make_spec(1), status=None)
    path = folder / "steps.rank000.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    assert kinds(root) == {"unfinished"}


def test_steps_whose_update_was_skipped_are_told_and_in_no_time(make, root):
    """Fault 21: fp16's loss scale is searched for in the first steps."""
    spec = make.make_spec(2, precision="fp16")
    write(make, root, spec, [lambda rank, step: 0.05 if step in (2, 3) else 0.1] * 3, skipped=range(2, 4))
    analysis = analyse(root).analysis
    assert analysis.runs[0].step_s.median == pytest.approx(0.1)
    (finding,) = found(root, "skipped_steps")
    assert (finding.severity, finding.hint) == ("warning", "precision=bf16 needs no loss scale")
    assert "overflowed fp16's loss scale in 6 of 36 steps" in finding.evidence
    other = make.make_spec(1, precision="fp16")
    write(make, root, other, [0.2] * 3, steps=100, skipped=range(1))
    assert found(root, "skipped_steps")[1].severity == "note"


def test_the_gravest_come_first(make, root):
    make.write_launch(root, make.make_spec(1), 0)
    make.write_launch(root, make.make_spec(1), 1, status="failed")
    make.write_launch(root, make.make_spec(2), 0, status="failed")
    severities = [finding.severity for finding in analyse(root).analysis.findings]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    assert severities[0] == "error"
