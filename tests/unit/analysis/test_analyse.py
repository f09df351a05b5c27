"""What is made of records: steps, shares, scaling, validity. Every expected figure is worked out in the test."""

import json

import pytest

from vitscale.analysis.analyse import analyse, write_analysis
from vitscale.analysis.missing import NEGATIVE
from vitscale.statistics import interval, ratio_interval


def only(result, **fields):
    found = [run for run in result.analysis.runs if all(getattr(run, key) == value for key, value in fields.items())]
    assert len(found) == 1, fields
    return found[0]


def launches(make, root, spec, times, **options):
    for launch, step_s in enumerate(times):
        make.write_launch(root, spec, launch, step_s, **options)


@pytest.fixture
def root(make, tmp_path):
    return make.write_study(tmp_path / "study", "Does a second process help?")


def test_a_step_is_as_long_as_its_slowest_rank(make, root):
    # Rank 1 is slower on even steps: the slowest of each step are 0.4, 0.2, 0.4, 0.2, ..., the median 0.3.
    make.write_launch(root, make.make_spec(2), 0, lambda rank, step: (0.4 if step % 2 == 0 else 0.1) if rank else 0.2)
    assert only(analyse(root)).step_s.median == pytest.approx(0.3)


def test_warm_up_is_not_counted(make, root):
    make.write_launch(root, make.make_spec(1), 0, lambda rank, step: 9.0 if step < 2 else 0.1)
    result = analyse(root)
    assert only(result).step_s.median == 0.1
    assert result.launches[0].steps == 10


def test_steps_that_a_rank_did_not_record_are_not_counted(make, root):
    # Rank 1 is the slower one and lost its last step: without it the last step would look fast.
    folder = make.write_launch(root, make.make_spec(2), 0, lambda rank, step: 0.2 if rank else 0.1)
    path = folder / "steps.rank001.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    result = analyse(root)
    assert result.launches[0].steps == 9
    assert only(result).step_s.median == 0.2


@pytest.mark.parametrize("harm", ["cut", "lost"])
def test_the_split_is_made_of_the_records_there_are_and_flagged(make, root, harm):
    folder = make.write_launch(root, make.make_spec(2), 0, parts=lambda rank: {"data_s": 0.3 if rank else 0.1})
    path = folder / "steps.rank001.jsonl"
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    else:
        path.unlink()
    result = analyse(root)
    run = only(result)
    assert run.shares.data == pytest.approx(0.2 if harm == "cut" else 0.1, rel=0.03)
    assert run.shares.data + run.shares.other == pytest.approx(1)
    assert not run.valid
    assert ("records of 1 of 2 ranks" in run.invalid_reasons) == (harm == "lost")
    told = " ".join(finding.evidence for finding in result.analysis.findings)
    assert path.name in told


def test_across_launches_the_interval_is_that_of_statistics(make, root):
    times = [0.10, 0.12, 0.11]
    launches(make, root, make.make_spec(1), times)
    run = only(analyse(root))
    assert tuple(run.step_s.model_dump().values()) == tuple(interval(times))
    assert run.images_per_s.median == pytest.approx(64 / 0.11)
    assert run.images_per_s.low == pytest.approx(64 / run.step_s.high)
    assert run.images_per_s.high == pytest.approx(64 / run.step_s.low)
    assert run.launches == 3


def test_speedup_and_efficiency_are_joint_with_the_baseline(make, root):
    one, two = [0.10, 0.12, 0.11], [0.06, 0.07, 0.065]
    launches(make, root, make.make_spec(1), one)
    launches(make, root, make.make_spec(2), two)
    result = analyse(root)
    base, run = only(result, world_size=1), only(result, world_size=2)
    assert result.analysis.baselines == {base.series: base.run_id}
    assert base.speedup.model_dump() == base.efficiency.model_dump() == {"median": 1, "low": 1, "high": 1}
    assert tuple(run.speedup.model_dump().values()) == pytest.approx(tuple(ratio_interval(one, two)))
    assert run.speedup.median == pytest.approx(0.11 / 0.065)
    assert run.efficiency.median == pytest.approx(0.11 / 0.065 / 2)


def test_weak_scaling_counts_images_not_steps(make, root):
    launches(make, root, make.make_spec(1, "weak"), [0.1] * 3)
    launches(make, root, make.make_spec(2, "weak"), [0.125] * 3)
    run = only(analyse(root), world_size=2)
    assert run.images_per_s.median == pytest.approx(64 / 0.125)
    assert run.speedup.median == pytest.approx(1.6)
    assert run.efficiency.median == pytest.approx(0.8)


def test_only_ok_launches_count(make, root):
    spec = make.make_spec(1)
    launches(make, root, spec, [0.1, 0.1, 0.1])
    for launch, status in enumerate(["failed", "killed", "timeout", None], start=3):
        make.write_launch(root, spec, launch, 5.0, status=status)
    result = analyse(root)
    assert only(result).launches == 3
    assert only(result).step_s.median == 0.1
    assert [one.status for one in result.launches] == ["ok"] * 3 + ["failed", "killed", "timeout", "unfinished"]


def test_shares_add_up_to_one_with_the_rest_in_other(make, root):
    launches(make, root, make.make_spec(1), [0.1, 0.3, 0.2], parts={"data_s": 0.1, "forward_s": 0.5})
    shares = only(analyse(root)).shares.model_dump()
    measured = {part: share for part, share in shares.items() if share is not None}
    assert measured == pytest.approx({"data": 0.1, "forward": 0.5, "other": 0.4}, abs=1e-3)
    assert sum(measured.values()) == pytest.approx(1, abs=1e-12)


def test_across_launches_shares_are_means_that_add_up_to_one(make, root):
    for launch, (data, forward) in enumerate([(0.6, 0.1), (0.1, 0.6), (0.2, 0.2)]):
        make.write_launch(root, make.make_spec(1), launch, parts={"data_s": data, "forward_s": forward})
    shares = only(analyse(root)).shares
    assert (shares.data, shares.forward, shares.other) == pytest.approx((0.3, 0.3, 0.4), abs=1e-3)


def test_shares_are_those_of_all_ranks(make, root):
    # One computes for half of a step in which the other waits: neither rank's split is the run's.
    make.write_launch(root, make.make_spec(2), parts=lambda rank: {"forward_s": 0.9 - 0.5 * rank, "wait_s": 0.5 * rank})
    shares = only(analyse(root)).shares
    assert (shares.forward, shares.wait, shares.other) == pytest.approx((0.65, 0.25, 0.1), abs=1e-3)


def test_parts_longer_than_the_step_leave_less_than_nothing_and_are_noted(make, root):
    make.write_launch(root, make.make_spec(1), parts={"forward_s": 0.9, "backward_s": 0.3})
    result = analyse(root)
    shares = only(result).shares
    assert (shares.forward, shares.backward, shares.other) == pytest.approx((0.9, 0.3, -0.2), abs=1e-3)
    assert "120.0 % of the step" in next(one for one in result.analysis.findings if one.kind == "split_open").evidence


def test_time_that_no_part_accounts_for_flags_a_run_whose_parts_were_all_timed(make, root):
    whole = {"data_s": 0.1, "forward_s": 0.3, "backward_s": 0.4, "optimizer_s": 0.1, "comm_exposed_s": 0, "wait_s": 0}
    make.write_launch(root, make.make_spec(1), parts={**whole, "launch_gap_s": 0})
    make.write_launch(root, make.make_spec(2), parts=whole)
    flagged = [one for one in analyse(root).analysis.findings if one.kind == "split_open"]
    assert [one.runs for one in flagged] == [(make.make_spec(1).run_id,)]
    assert "add up to 90.0 % of the step, so 10.0 %" in flagged[0].evidence


def test_a_part_below_zero_is_null_with_the_reason_and_flags_the_run(make, root):
    spec = make.make_spec(2)
    parts = {"data_s": 0.1, "forward_s": 0.5, "backward_s": 0.2, "comm_exposed_s": 0.1, "wait_s": 0.1}
    make.write_launch(root, spec, 0, parts=parts)
    folder = make.write_launch(root, spec, 1, parts=parts)
    path = folder / "steps.rank001.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[-1] |= {"data_s": -5e-3, "comm_overlapped_s": -1e-6}
    lines[0]["forward_s"] = -1.0  # warm-up
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = analyse(root)
    run = only(result)
    assert run.shares.data is None
    assert run.shares.forward == pytest.approx(0.5, abs=1e-3)
    assert run.shares.other == pytest.approx(0.1, abs=1e-3)
    assert run.missing == dict.fromkeys(("data_s", "comm_overlapped_s"), NEGATIVE)
    (finding,) = [one for one in result.analysis.findings if one.kind == "negative_time"]
    assert finding.runs == (spec.run_id,)
    assert "comm_overlapped_s, data_s below 0 in steps of 1 launch" in finding.evidence


@pytest.mark.parametrize(("negative", "other"), [("wait", "comm_exposed"), ("forward", "backward")])
def test_what_is_told_with_a_part_below_zero_is_null_with_it(make, root, negative, other):
    parts = {"forward_s": 0.4, "backward_s": 0.3, "comm_exposed_s": 0.1, "wait_s": 0.1}
    path = make.write_launch(root, make.make_spec(2), 0, parts=parts) / "steps.rank001.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[-1][f"{negative}_s"] = -1e-6
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = only(analyse(root))
    assert (getattr(run.shares, negative), getattr(run.shares, other)) == (None, None)
    assert run.missing == dict.fromkeys((f"{negative}_s", f"{other}_s"), NEGATIVE)


def test_a_part_that_one_launch_lacks_is_not_measured(make, root):
    spec = make.make_spec(1)
    make.write_launch(root, spec, 0, parts={"forward_s": 0.5, "comm_exposed_s": 0.2, "wait_s": 0.1})
    make.write_launch(root, spec, 1, parts={"forward_s": 0.5, "wait_s": 0.1})
    shares = only(analyse(root)).shares
    assert shares.comm_exposed is None
    assert shares.wait == pytest.approx(0.1, abs=1e-3)
    assert shares.forward + shares.wait + shares.other == pytest.approx(1)


def test_nothing_timed_inside_a_step_is_no_split_at_all(make, root):
    make.write_launch(root, make.make_spec(1), parts={})
    assert set(only(analyse(root)).shares.model_dump().values()) == {None}


def test_more_ranks_than_cores_is_not_valid_and_no_baseline(make, root):
    launches(make, root, make.make_spec(1, oversubscribed=True), [0.1] * 3)
    launches(make, root, make.make_spec(2), [0.1] * 3)
    result = analyse(root)
    assert only(result, world_size=1).invalid_reasons == ("more ranks than cores",)
    assert list(result.analysis.baselines.values()) == [only(result, world_size=2).run_id]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"steps": 4}, "a launch has 4 steady steps, fewer than 5"),
        ({"steps": 0}, "a launch has 0 steady steps, fewer than 5"),
        ({"ranks": 1}, "records of 1 of 2 ranks"),
        ({"status": "failed"}, "no launch with status ok"),
        ({"status": None}, "no launch with status ok"),
    ],
)
def test_what_cannot_be_read_as_scaling_says_why(make, root, options, reason):
    make.write_launch(root, make.make_spec(2), **options)
    run = only(analyse(root))
    assert not run.valid
    assert reason in run.invalid_reasons


def test_mixed_devices_within_a_run_or_a_series_are_not_valid(make, root):
    launches(make, root, make.make_spec(1), [0.1] * 3, device="A")
    launches(make, root, make.make_spec(2), [0.1] * 3, device="B")
    for launch, device in enumerate("AB"):
        make.write_launch(root, make.make_spec(4), launch, device=device)
    result = analyse(root)
    assert only(result, world_size=1).valid
    assert only(result, world_size=2).invalid_reasons == ("mixed devices in the series: B, baseline A",)
    assert only(result, world_size=4).invalid_reasons == ("mixed devices: A, B",)
    assert only(result, world_size=4).device == "A, B"


def test_the_baseline_can_be_named(make, tmp_path):
    root = make.write_study(tmp_path, baseline=2)
    for size in (1, 2, 4):
        launches(make, root, make.make_spec(size), [0.4 / size] * 3)
    result = analyse(root)
    assert only(result, world_size=2).speedup.median == 1
    assert only(result, world_size=1).speedup.median == pytest.approx(0.5)
    assert only(result, world_size=4).efficiency.median == pytest.approx(1)


def test_a_named_baseline_that_is_missing_gives_no_speedup(make, tmp_path):
    root = make.write_study(tmp_path, baseline=8)
    launches(make, root, make.make_spec(1), [0.1] * 3)
    result = analyse(root)
    assert only(result).speedup is None
    assert result.analysis.baselines == {}
    finding = next(one for one in result.analysis.findings if one.kind == "baseline_missing")
    assert "world_size 8" in finding.evidence


def test_sources_are_never_mixed_in_one_series(make, root):
    launches(make, root, make.make_spec(1), [0.1] * 3)
    launches(make, root, make.make_spec(2), [0.01] * 3, source="imported")
    result = analyse(root)
    assert only(result, world_size=1).series != only(result, world_size=2).series
    assert only(result, world_size=2).speedup.median == 1


def test_launches_of_another_source_are_left_out_of_a_run(make, root):
    spec = make.make_spec(1)
    launches(make, root, spec, [0.1] * 3)
    make.write_launch(root, spec, 3, 9.0, source="simulated")
    result = analyse(root)
    assert (only(result).launches, only(result).source) == (3, "measured")
    assert "mixed_sources" in {one.kind for one in result.analysis.findings}


def test_planned_runs_that_never_started_and_skipped_ones_are_shown(make, tmp_path):
    spec = make.make_spec(1)
    planned = {"run_id": spec.run_id, "series": spec.series, "spec": spec.model_dump(mode="json")}
    root = make.write_study(tmp_path, plan={"runs": [planned], "skipped": [{"label": "x", "reason": "why"}]})
    result = analyse(root)
    assert only(result).invalid_reasons == ("not started",)
    assert [(one.label, one.reason) for one in result.skipped] == [("x", "why")]


def test_losses_are_the_mean_over_ranks_by_images_of_the_first_ok_launch(make, root):
    spec = make.make_spec(2)
    make.write_launch(root, spec, 0, status="failed")
    folder = make.write_launch(root, spec, 1)
    for rank, loss, images in ((0, 1.0, 30), (1, 2.0, 10)):
        path = folder / f"steps.rank00{rank}.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({**one, "loss": loss, "images": images}) + "\n" for one in records))
    (curve,) = analyse(root).losses
    assert curve.step == list(range(12))
    assert curve.images == [40 * (step + 1) for step in range(12)]
    assert curve.loss == pytest.approx([1.25] * 12)


def test_memory_and_accuracy_come_from_the_launches_that_count(make, root):
    spec = make.make_spec(2)
    for launch, accuracy in enumerate((0.90, 0.94, 0.91)):
        make.write_launch(root, spec, launch, accuracy=accuracy)
    make.write_launch(root, spec, 3, accuracy=0.1, status="failed")
    run = only(analyse(root))
    assert run.memory_peak_bytes == 401 * 2**20
    assert run.test_accuracy == 0.91


def test_analysis_json_is_the_result_and_validates(make, root):
    launches(make, root, make.make_spec(1), [0.1, 0.2, 0.15])
    result = analyse(root)
    write_analysis(root, result)
    document = json.loads((root / "analysis.json").read_text())
    assert type(result.analysis).model_validate(document) == result.analysis
    assert analyse(root).analysis == result.analysis


def test_the_order_in_which_launches_came_changes_nothing(make, tmp_path):
    times = [0.10, 0.13, 0.11, 0.12, 0.10, 0.14, 0.11]
    found = []
    for name, order in (("a", times), ("b", times[::-1])):
        root = make.write_study(tmp_path / name)
        launches(make, root, make.make_spec(1), order)
        launches(make, root, make.make_spec(2), [value / 2 for value in order])
        found.append(analyse(root).analysis)
    assert found[0] == found[1]


def with_parity(folder, **parity):
    path = folder / "manifest.json"
    told = {"first_step": None, "worst_loss": 1e-7, "worst_weight": 1e-6, "tensor": "head.weight", **parity}
    path.write_text(json.dumps({**json.loads(path.read_text()), "parity": told}))


def test_an_engine_that_differs_from_plain_torch_is_not_comparable(make, root):
    for launch, parity in enumerate(({"ok": True}, {"ok": False, "first_step": 2, "worst_loss": 1e-3})):
        with_parity(make.write_launch(root, make.make_spec(1), launch), **parity)
    with_parity(make.write_launch(root, make.make_spec(2)), ok=True)
    result = analyse(root)
    failed, passed = only(result, world_size=1), only(result, world_size=2)
    assert failed.invalid_reasons == ("not comparable: differs from plain torch from step 2 on",)
    assert (failed.valid, failed.parity.first_step) == (False, 2)
    assert (passed.valid, passed.parity.ok) == (True, True)
