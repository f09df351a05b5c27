"""Layouts and cores."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitscale.errors import Infeasible
from vitscale.hardware.topology import Topology, core_sets, cpu_shares, layout, oversubscribed, sibling_groups


@pytest.mark.parametrize(
    ("given_values", "expected"),
    [((8,), (1, 8)), ((8, 2), (2, 4)), ((8, None, 2), (4, 2)), ((8, 2, 4), (2, 4)), ((1,), (1, 1))],
)
def test_layout_solves_what_is_not_given(given_values, expected):
    assert layout(*given_values) == Topology(*expected)


@pytest.mark.parametrize("values", [(8, 3), (8, None, 3), (8, 2, 2), (2, 4), (2, None, 4), (0,), (4, 0)])
def test_ranks_that_do_not_spread_evenly_are_infeasible(values):
    with pytest.raises(Infeasible, match="world_size"):
        layout(*values)


@given(st.integers(1, 16), st.integers(1, 16))
def test_ranks_are_numbered_node_by_node(nodes, ranks_per_node):
    topology = Topology(nodes, ranks_per_node)
    places = [(topology.node(rank), topology.local_rank(rank)) for rank in range(topology.world_size)]
    assert places == [(node, local) for node in range(nodes) for local in range(ranks_per_node)]


@given(st.integers(1, 64), st.sets(st.integers(0, 255), min_size=1), st.data())
def test_every_world_size_up_to_the_largest_gets_disjoint_cores_and_the_same_threads(largest, allowed, data):
    cores = sorted(allowed)
    threads = cpu_shares(largest, cores)
    sets = core_sets(data.draw(st.integers(1, largest)), threads, cores)
    if largest > len(cores):
        assert threads == 1
        return
    used = [core for one in sets for core in one]
    assert len(used) == len(set(used))
    assert set(used) <= allowed
    assert {len(one) for one in sets} == {threads}


def test_more_ranks_than_cores_are_oversubscribed_and_not_pinned():
    assert oversubscribed(3, 1, [0, 1])
    assert core_sets(3, 1, [0, 1]) is None
    assert not oversubscribed(2, 1, [0, 1])


SIBLINGS = [(0, 4), (1, 5), (2, 6), (3, 7)]


def test_physical_cores_come_before_hyper_threads():
    assert core_sets(2, 2, range(8), SIBLINGS) == [(0, 1), (2, 3)]


def test_hyper_threads_of_one_core_stay_in_one_rank():
    assert core_sets(2, 4, range(8), SIBLINGS) == [(0, 1, 4, 5), (2, 3, 6, 7)]


def test_sibling_groups_follow_sys_and_the_affinity_mask(tmp_path):
    for core, text in {0: "0,4\n", 1: "1-2\n", 4: "0,4\n"}.items():
        folder = tmp_path / f"cpu{core}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(text)
    assert sibling_groups([0, 1, 4, 9], tmp_path) == [(0, 4), (1,), (9,)]
    assert sibling_groups([1, 4], tmp_path) == [(1,), (4,)]
