"""Collectives of a run, beside the closed form in the plan."""

import pytest

from vitscale.analysis.analyse import analyse
from vitscale.records.collectives import CollectiveRecord
from vitscale.records.links import LINKS, LinkBenchmark, Timing
from vitscale.records.writer import make_folder, write_json
from vitscale.report.verdict_tables import collective_table


def line(size, operation="all_reduce", busbw=1e9):
    return CollectiveRecord(
        operation=operation, group_size=2, calls_per_step=2, bytes_per_step=size, wire_s_per_step=size / busbw,
        algbw_bytes_per_s=busbw, busbw_bytes_per_s=busbw,
    )  # fmt: skip


def idle(operation, size, busbw):
    timing = {"operation": operation, "bytes": size, "times_s": [size / busbw]}
    return Timing(**timing, algorithm_bytes_per_s=busbw, bus_bytes_per_s=busbw)


def links(*timings, latency_s=1e-4):
    return LinkBenchmark(
        world_size=2, nodes=1, backend="gloo", link=None, latency_s=latency_s, timings=timings, left_out=0
    )


def study(make, tmp_path, planned, lines, benchmark=None):
    spec = make.make_spec(2)
    estimate = {"collectives": [{"operation": name, "calls": 1, "bytes": size} for name, size in planned]}
    run = {"run_id": spec.run_id, "series": spec.series, "spec": spec.model_dump(mode="json"), "estimate": estimate}
    root = make.write_study(tmp_path, plan={"runs": [run]})
    make.write_launch(root, spec, collectives=lines)
    if benchmark is not None:
        write_json(make_folder(root / "rounds" / "0-w2") / LINKS, benchmark.model_dump(mode="json"))
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
    assert rows[2][1:8] == ("all_gather", "2", "2", "500 B", "0.250 µs", "2.00 GB/s", "2.00 GB/s")
    assert rows[2][8:] == ("n/a", "n/a")


def test_a_launch_that_recorded_none_is_not_compared(make, tmp_path):
    result = study(make, tmp_path, [("all_reduce", 1000)], [])
    assert "collectives_differ" not in {one.kind for one in result.analysis.findings}
    assert collective_table(result).rows == ()


def test_a_collective_is_held_against_the_idle_link_at_the_nearest_size(make, tmp_path):
    benchmark = links(idle("all_reduce", 100, 1e8), idle("all_reduce", 600, 4e9), idle("broadcast", 500, 9e9))
    result = study(make, tmp_path, [("all_reduce", 1000)], [line(1000)], benchmark)
    assert collective_table(result).rows[0][-2:] == ("4.00 GB/s", "25 %")
