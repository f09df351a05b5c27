"""What is not told of a run is said with its reason, and on what exposed communication rests."""

import pytest

from vitscale.analysis.analyse import analyse
from vitscale.report.method import method

TIMED = {"forward_s": 0.3, "backward_s": 0.5, "comm_exposed_s": 0.15, "wait_s": 0.05}
SHORT = "fewer than 8 steady steps"


def told(make, tmp_path, *launches):
    """`launches` are a world size, parts and notes each."""
    root = make.write_study(tmp_path)
    for size, parts, notes in launches:
        make.write_launch(root, make.make_spec(size), parts=parts, notes=notes)
    result = analyse(root)
    return result, dict(method(result))


def test_a_reason_stands_once_with_what_it_explains_and_where(make, tmp_path):
    notes = {"silence": SHORT, "overlap": SHORT, "host.energy_j": "only root may read RAPL"}
    result, terms = told(make, tmp_path, (2, TIMED, notes), (4, TIMED, {"silence": SHORT}))
    assert terms["Not told, and why"].startswith(
        f"steps without collectives: {SHORT} (strong, 2 processes; strong, 4 processes); "
        f"communication by the profiler: {SHORT} (strong, 2 processes); "
        "host.energy_j: only root may read RAPL (strong, 2 processes)"
    )
    assert result.analysis.runs[0].missing == notes
    assert terms["Exposed communication"] == (
        "by two methods or three in 0 of 2 runs of several ranks; by arrivals alone in strong, 2 processes; strong, 4 "
        "processes."
    )


def test_one_rank_lacks_nothing_that_is_between_ranks(make, tmp_path):
    alone = {"silence": "one rank sends nothing", "overlap": "one rank sends nothing"}
    terms = told(make, tmp_path, (1, {**TIMED, "comm_exposed_s": 0.0}, alone))[1]
    assert "Not told, and why" not in terms
    assert "Exposed communication" not in terms


def test_what_differs_from_launch_to_launch_and_is_there_is_no_reason(make, tmp_path):
    notes = {"memory_peak_bytes": "of the process since its start, not of this launch", "resumed_after_step": 4}
    assert "Not told, and why" not in told(make, tmp_path, (2, TIMED, notes))[1]


@pytest.mark.parametrize(
    ("offsets", "words"),
    [
        ([[0.0, 0.0], [-3.2, 4e-05], [0.5, 1e-05]], "at most 3.20 s apart"),
        ([[0.0, 0.0], "late", [None, 1], [0.002, 5e-05]], "at most 2.00 ms apart"),
        ("yesterday", None),
        ([[0.0, 0.0]], None),
    ],
)
def test_clocks_of_hosts_are_stated_with_what_they_may_be_off(make, tmp_path, offsets, words):
    terms = told(make, tmp_path, (2, TIMED, {"clock_offset_s": offsets}))[1]
    if words is None:
        assert "Clocks of the hosts" not in terms
    else:
        assert terms["Clocks of the hosts"].startswith(words)
        assert "µs or better" in terms["Clocks of the hosts"]
