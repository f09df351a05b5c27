"""What measuring cost: the dearest rank of each launch, over the step it was part of."""

import json

import pytest

from vitscale.analysis.analyse import analyse
from vitscale.report.method import method

# 5 marks of 1 us, a heartbeat of 5 us and two collectives of 10 and 30 us: 50 us of a step of 10 ms, and the samples.
CHEAP = {
    "marks": 5, "mark_s": 1e-6, "heartbeat_s": 5e-6, "synchronous": 1, "synchronous_s": 10e-6, "asynchronous": 1,
    "asynchronous_s": 30e-6, "sampling_share": 0.001,
}  # fmt: skip


def study(make, tmp_path, *launches):
    """One launch of two ranks per pair of overheads; a step takes 10 ms."""
    root = make.write_study(tmp_path)
    for launch, told in enumerate(launches):
        path = make.write_launch(root, make.make_spec(2), launch, 0.01) / "manifest.json"
        manifest = json.loads(path.read_text())
        for device, overhead in zip(manifest["devices"], told, strict=True):
            device["overhead"] = overhead
        path.write_text(json.dumps(manifest))
    return analyse(root)


def findings(result):
    return [one for one in result.analysis.findings if one.kind == "overhead"]


def test_the_report_prints_the_overhead_of_the_dearest_rank(make, tmp_path):
    result = study(make, tmp_path, *[(CHEAP | {"sampling_share": 0.0}, CHEAP)] * 3)
    assert result.analysis.runs[0].overhead_share == pytest.approx(0.006)
    assert findings(result) == []
    assert dict(method(result))["Cost of measuring"].startswith("0.60 % of the step at most (")


def test_across_launches_it_is_the_median(make, tmp_path):
    dear = CHEAP | {"synchronous": 100}
    result = study(make, tmp_path, (CHEAP, CHEAP), (CHEAP, dear), (CHEAP, CHEAP))
    assert result.analysis.runs[0].overhead_share == pytest.approx(0.006)


def test_more_than_one_percent_is_a_finding_that_says_what_it_went_into(make, tmp_path):
    (one,) = findings(study(make, tmp_path, *[(CHEAP, CHEAP | {"synchronous": 17})] * 3))
    assert "measuring took 2.2 % of the step: 17.0 timed collectives of 10.0 µs, 1.00 timed coll" in one.evidence
    assert "5.00 marks of 1.00 µs" in one.evidence
    assert "larger collectives" in one.hint


def test_samples_that_cost_most_of_it_are_what_to_change(make, tmp_path):
    (one,) = findings(study(make, tmp_path, *[(CHEAP | {"sampling_share": 0.02}, CHEAP)] * 3))
    assert "measure.sample_s" in one.hint


def test_a_rank_that_is_alone_times_no_collective(make, tmp_path):
    none = {"synchronous": 0, "synchronous_s": None, "asynchronous": 0, "asynchronous_s": None}
    lone = CHEAP | none | {"mark_s": 21e-6}
    (one,) = findings(study(make, tmp_path, *[(lone, lone)] * 3))
    assert "1.2 % of the step: 5.00 marks" in one.evidence


def test_a_timed_collective_that_noise_made_the_faster_one_takes_nothing_off(make, tmp_path):
    faster = CHEAP | {"asynchronous_s": -1e-3}
    result = study(make, tmp_path, *[(faster, faster)] * 3)
    assert result.analysis.runs[0].overhead_share == pytest.approx(0.003)


def test_records_without_it_say_nothing(make, tmp_path):
    result = study(make, tmp_path, (None, None))
    assert result.analysis.runs[0].overhead_share is None
    assert "Cost of measuring" not in dict(method(result))
