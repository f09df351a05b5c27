"""Collectives of a run, beside the closed form in the plan."""

import pytest

from vitscale.analysis.analyse import analyse
from vitscale.records.collectives import CollectiveRecord
from vitscale.records.links import LINKS, LinkBenchmark, Timing
from vitscale.records.writer import make_folder, write_json
from vitscale.report.verdict_tables import collective_table


def line(size, operation="all_reduce", busbw=1e9, ranks=2):
    return CollectiveRecord(
        operation=operation, group_size=ranks, calls_per_step=2, bytes_per_step=size, wire_s_per_step=size / busbw,
        algbw_bytes_per_s=busbw, busbw_bytes_per_s=busbw,
    )  # fmt: skip


def idle(operation, size, busbw):
    timing = {"operation": operation, "bytes": size, "times_s": [size / busbw]}
    return Timing(**timing, algorithm_bytes_per_s=busbw, bus_bytes_per_s=busbw)


def links(*timings, latency_s=1e-4):
    return LinkBenchmark(
        world_size=2, nodes=1, backend="gloo", link=None, latency_s=latency_s, timings=timings, left_out=0
    )


def study(make, tmp_path, planned, lines, benchmark=None, **changes):
    spec = make.make_spec(2, **changes)
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
    assert rows[2][1:7] == ("all_gather", "2", "2", "500 B", "2", "500 B")
    assert rows[2][7:10] == ("0.250 µs", "2.00 GB/s", "2.00 GB/s")
    assert rows[2][10:] == ("n/a", "n/a")


@pytest.mark.parametrize(("planned", "differs"), [([("all_reduce", 1000)], True), ([], False)])
def test_a_run_that_sent_nothing_is_compared_too(make, tmp_path, planned, differs):
    result = study(make, tmp_path, planned, [])
    found = [one for one in result.analysis.findings if one.kind == "collectives_differ"]
    told = "strong, 2 processes: per step all_reduce carries 0 B, by the closed form 1,000 B (-100.0 % of all bytes)."
    assert [one.evidence for one in found] == [told][: len(found)]
    assert bool(found) == differs
    assert collective_table(result).rows == ()


def test_a_micro_step_has_its_share_of_calls_and_bytes(make, tmp_path):
    result = study(make, tmp_path, [("all_reduce", 1000)], [line(1000)], micro_batch=8, grad_accum=4)
    assert collective_table(result).rows[0][3:7] == ("2", "1,000 B", "0.5", "250 B")


def test_a_collective_is_held_against_the_idle_link_at_the_nearest_size(make, tmp_path):
    benchmark = links(idle("all_reduce", 100, 1e8), idle("all_reduce", 600, 4e9), idle("broadcast", 500, 9e9))
    result = study(make, tmp_path, [("all_reduce", 1000)], [line(1000)], benchmark)
    assert collective_table(result).rows[0][-2:] == ("4.00 GB/s", "25 %")


def test_a_part_of_the_ranks_is_not_held_against_the_link_of_all(make, tmp_path):
    """Ranks of a smaller group may share a host, where those of the whole world do not."""
    benchmark = links(idle("all_reduce", 600, 4e9))
    result = study(make, tmp_path, [("all_reduce", 1000)], [line(1000, ranks=4)], benchmark)
    assert collective_table(result).rows[0][-2:] == ("n/a", "n/a")


def test_the_same_calls_on_the_idle_link_stand_in_for_steps_without_collectives(make, tmp_path):
    """Two calls of 500 bytes at 1 MB/s, two of 40 bytes that latency bounds, of a step of 100 ms."""
    benchmark = links(idle("all_reduce", 500, 1e6), idle("broadcast", 40, 1e9), latency_s=4e-4)
    lines = [line(1000), line(80, "broadcast")]
    result = study(make, tmp_path, [("all_reduce", 1000), ("broadcast", 80)], lines, benchmark)
    assert result.analysis.runs[0].idle_link_share == pytest.approx((2 * 5e-4 + 2 * 4e-4) / 0.1)
    partly = study(make, tmp_path / "partly", [("all_reduce", 1000)], [*lines, line(8, ranks=4)], benchmark)
    assert partly.analysis.runs[0].idle_link_share is None
