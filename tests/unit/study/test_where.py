"""Hosts that the launcher `lab` lays out: which runs there are, and what their links make of them."""

import pytest

from vitscale.config.load import load
from vitscale.data.catalog import DatasetFacts
from vitscale.errors import SetupError, UsageError
from vitscale.hardware.probe import Gpu, Machine
from vitscale.launch.hostfile import Host
from vitscale.study import plan as planning
from vitscale.study.grid import Images, build
from vitscale.study.where import Where

DIGITS = Images(DatasetFacts("digits", 10, 1437, 360, 8, 8, 1, "made for this test"), "0123456789abcdef")


def machine(gpus=0):
    return Machine(4, (0, 1, 2, 3), 16 << 30, "a CPU", (Gpu("a GPU", 80 << 30),) * gpus, None, None)


def runs(*words, where=None):
    return build(load("quick", words).study, where or Where(machine(), lab=True), lambda section: DIGITS).runs


def test_a_lab_has_as_many_hosts_as_are_asked_for():
    found = runs("protocol=strong", "world_size=1,2,4", "nodes=1,2,4")
    assert [(run.world_size, run.nodes, run.ranks_per_node) for run in found] == [
        (1, 1, 1), (2, 1, 2), (4, 1, 4), (2, 2, 1), (4, 2, 2), (4, 4, 1)
    ]  # fmt: skip


def test_the_link_is_part_of_what_is_measured_and_a_series_has_one():
    slow, fast = (runs("protocol=strong", "world_size=1,2", "nodes=1,2", f"link={link}") for link in ("1mbit", "1gbit"))
    assert {run.link for run in slow} == {"1mbit"}
    assert not {run.run_id for run in slow} & {run.run_id for run in fast}
    assert [len({run.series for run in one}) for one in (slow, fast, slow + fast)] == [1, 1, 2]


def test_a_link_that_is_swept_is_an_axis():
    found = build(
        load("quick", ("protocol=strong", "launch.link=1mbit,1gbit")).study,
        Where(machine(), lab=True), lambda section: DIGITS,
    )  # fmt: skip
    assert sorted({run.link for run in found.runs}) == ["1gbit", "1mbit"]
    assert any("link 1mbit" in label for label in found.labels().values())


def test_another_launcher_has_no_link_to_shape():
    here = Where(machine())
    assert [run.run_id for run in runs("link=1gbit", where=here)] == [run.run_id for run in runs(where=here)]


@pytest.mark.parametrize(("link", "bytes_per_s"), [("100mbit", 12.5e6), ("2.5gbit", 312.5e6), ("64kbit", 8e3)])
def test_a_rate_in_bits_is_an_eighth_in_bytes(link, bytes_per_s):
    assert runs(f"link={link}")[0].link_bytes_per_s == pytest.approx(bytes_per_s)


@pytest.mark.parametrize(
    "link", ["1000", "1 gbit", "gbit", "0gbit", "-1mbit", "1gbit; reboot", "1Gbit", "1gbps", "07gbit"]
)
def test_what_tc_would_not_take_is_refused_before_it_is_asked(link):
    with pytest.raises(UsageError, match=r"`launch\.link` = "):
        load("quick", (f"launch.link={link}",))


def test_a_lab_shares_out_cores_and_no_gpus():
    where = Where(machine(gpus=2), lab=True)
    assert {run.device for run in runs(where=where)} == {"cpu"}
    with pytest.raises(SetupError, match="no GPUs"):
        runs("device=cuda", where=where)


def test_the_plan_expects_a_slow_link_to_cost_time_between_hosts_only(monkeypatch, tmp_path):
    monkeypatch.setattr(planning, "matrix_flop_per_s", lambda: 100e9)
    monkeypatch.setattr(planning, "described", lambda root: lambda section: DIGITS)

    def step_s(nodes, link):
        words = ("protocol=strong", "world_size=2", f"nodes={nodes}", f"link={link}")
        plan = planning.make(load("quick", words), Where(machine(), lab=True), planning.described(tmp_path))
        (estimate,) = plan.estimates.values()
        assert estimate.memory_limit_bytes == 8 << 30
        return estimate.step.step_s

    assert step_s(2, "10mbit") - step_s(2, "100mbit") == pytest.approx(
        # The all-reduce of 2 ranks sends each its size once: 21.5 MB.
        4 * 5_365_066 * (1 / 1.25e6 - 1 / 12.5e6) / planning.PAYLOAD_SHARE, rel=0.02
    )  # fmt: skip
    assert step_s(1, "10mbit") == step_s(1, "100mbit")


def over(*slots, gpus=0):
    """Hosts of a hostfile."""
    return Where(machine(gpus), hosts=tuple(Host(f"host{number}", each) for number, each in enumerate(slots)))


@pytest.mark.parametrize(
    ("slots", "words", "expected"),
    [
        ((4, 4), ("world_size=1,2,4,8",), [(1, 1, 1), (2, 1, 2), (4, 1, 4), (8, 2, 4)]),
        ((4, 4, 4), ("world_size=6", "global_batch=66"), [(6, 2, 3)]),
        ((2, 4, 4), ("world_size=8",), [(8, 2, 4)]),
        ((4, 4), ("world_size=2,4", "nodes=2"), [(2, 2, 1), (4, 2, 2)]),
        ((4, 4), ("world_size=4", "ranks_per_node=2"), [(4, 2, 2)]),
    ],
)
def test_ranks_are_spread_over_as_few_hosts_as_have_room(slots, words, expected):
    found = runs("protocol=strong", *words, where=over(*slots))
    assert [(run.world_size, run.nodes, run.ranks_per_node) for run in found] == expected
    # The ranks of a host share its cores, of which each has as many as this machine.
    assert {(run.threads_per_rank, run.oversubscribed) for run in found} == {
        (4 // min(4, max(x[0] for x in expected)), False)
    }


@pytest.mark.parametrize(
    ("slots", "words"),
    [((4,), ("world_size=8",)), ((4, 1), ("world_size=8",)), ((2, 2), ("world_size=4", "nodes=1"))],
)
def test_a_world_that_the_hosts_have_no_room_for_is_refused(slots, words):
    with pytest.raises(UsageError, match=r"on one host: those there are have \d(, \d)? slots") as refused:
        runs("protocol=strong", *words, where=over(*slots))
    assert "launch.hostfile" in refused.value.hint


def test_gpus_are_those_of_a_host():
    words = ("protocol=strong", "device=cuda", "world_size=4")
    assert [run.nodes for run in runs(*words, where=over(2, 2, gpus=2))] == [2]
    with pytest.raises(UsageError, match="there are 2 GPUs"):
        runs(*words, "nodes=1", where=over(4, gpus=2))


def test_the_hostfile_is_the_whole_studys():
    with pytest.raises(UsageError, match=r"`launch\.hostfile` cannot vary"):
        load("quick", ("launch.hostfile=a,b",))


def test_threads_are_what_a_host_leaves_to_each_of_its_ranks_whoever_starts_them():
    words = ("protocol=strong", "world_size=4", "nodes=2")
    started = runs(*words, where=Where(machine(), elsewhere=True))
    listed = runs(*words, where=Where(machine(), hosts=(Host("a", 2), Host("b", 2))))
    assert [run.threads_per_rank for run in (*started, *listed)] == [2, 2]
    assert [run.run_id for run in started] == [run.run_id for run in listed]
