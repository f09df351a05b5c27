"""Collectives of a run, beside the closed form in the plan."""

import pytest

from vitscale.analysis.analyse import analyse
from vitscale.records.collectives import CollectiveRecord
from vitscale.report.verdict_tables import collective_table


def line(size, operation="all_reduce", busbw=1e9):
    return CollectiveRecord(
        operation=operation, group_size=2, calls_per_step=2, bytes_per_step=size, wire_s_per_step=size / busbw,
        algbw_bytes_per_s=busbw, busbw_bytes_per_s=busbw,
    )  # fmt: skip


def study(make, tmp_path, planned, lines):
    spec = make.make_spec(2)
    estimate = {"collectives": [{"operation": name, "calls": 1, "bytes": size} for name, size in planned]}
    run = {"run_id": spec.run_id, "series": spec.series, "spec": spec.model_dump(mode="json"), "estimate": estimate}
    root = make.write_study(tmp_path, plan={"runs": [run]})
    make.write_launch(root, spec, collectives=lines)
    return analyse(root)


@pytest.mark.parametrize(("sent", "differs"), [(1000, False), (1009, False), (1020, True), (900, True)])
def test_bytes_off_the_closed_form_by_more_than_a_percent_are_a_finding(make, tmp_path, sent, differs):
    result = study(make, tmp_path, [("all_reduce", 1000)], [line(sent)])
    found = [one for one in result.analysis.findings if one.kind == "collectives_differ"]
    assert bool(found) == differs


def test_an_operation_nobody_planned_is_a_finding_and_sizes_of_one_are_added_up(make, tmp_path):
    lines = [line(600), line(400), line(500, "all_gather", 2e9)]
    result = study(make, tmp_path, [("all_reduce", 1000)], lines)
    (finding,) = [one for one in result.analysis.findings if one.kind == "collectives_differ"]
    assert "all_gather carries 500 B, by the closed form 0 B (33.3 % of all bytes)" in finding.evidence
    assert "all_reduce" not in finding.evidence
    rows = collective_table(result).rows
    assert rows[2][1:] == ("all_gather", "2", "2", "500 B", "0.250 µs", "2.00 GB/s", "2.00 GB/s", "100 %")
    assert rows[0][-1] == "50 %"


def test_a_launch_that_recorded_none_is_not_compared(make, tmp_path):
    result = study(make, tmp_path, [("all_reduce", 1000)], [])
    assert "collectives_differ" not in {one.kind for one in result.analysis.findings}
    assert collective_table(result).rows == ()
