"""Links as `vitscale doctor` judges them: by the rate that they are shaped to, else by the best pair; by no sheet."""

import itertools
from dataclasses import replace

import pytest
from test_doctor_checks import A100, LINKS, case, host, meeting, pair, runs, timing, together, wrong

from vitscale.hardware import catalog
from vitscale.study.doctor import largest_world
from vitscale.study.expected import Expected, of_ring
from vitscale.study.link_checks import of_ranks

V100 = "Tesla V100-SXM2-32GB"


def three(*rates):
    pairs = [pair(0, 1, rates[0]), pair(0, 2, rates[1]), pair(1, 2, rates[2])]
    return together([meeting(0), meeting(1), meeting(2)], pairs)


def test_a_host_that_is_slow_with_every_other_is_named():
    (found,) = wrong(of_ranks(case([host(0), host(1), host(2)], three(110e6, 11e6, 12e6))))
    assert found[:3] == ("links", "failed", "host 2")
    assert "10 % of the best pair, hosts 0 and 1" in found[3]


def test_a_single_slow_pair_is_named_as_a_pair():
    (found,) = wrong(of_ranks(case([host(0), host(1), host(2)], three(110e6, 109e6, 12e6))))
    assert found[:3] == ("links", "failed", "hosts 1 and 2")


def test_all_pairs_are_slow_where_the_links_own_rate_is_known():
    hosts = [host(0), host(1), host(2)]
    words = ("world_size=3", "nodes=3", "link=1gbit")
    found = wrong(of_ranks(case(hosts, three(11e6, 11e6, 11e6), *words)))
    assert [one[2] for one in found] == ["hosts 0 and 1", "hosts 0 and 2", "hosts 1 and 2"]
    assert wrong(of_ranks(case(hosts, three(110e6, 112e6, 117e6), *words))) == []


def test_a_link_that_is_shaped_above_what_one_machine_reaches_judges_nothing():
    hosts, words = [host(0), host(1), host(2)], ("world_size=3", "nodes=3", "link=10gbit")
    found = three(500e6, 510e6, 505e6)
    found = found.model_copy(update={"links": LINKS.model_copy(update={"timings": (timing(200e6),)})})
    checks = list(of_ranks(case(hosts, found, *words)))
    assert wrong(checks) == []
    told = {one.name: one.text for one in checks}
    assert told["links"].endswith("; 900 MB/s at best (hosts of one machine, link = 10gbit)")
    assert told["all-reduce"].endswith("; 900 MB/s at best (hosts of one machine, link = 10gbit)")


SIZES_OF_A100 = [(16_777_216, 120e9), (33_554_432, 147e9), (134_217_728, 197e9)]
"""Bytes of an all-reduce of eight sound A100, and its bus bandwidth of 300 GB/s, by nccl-tests."""


@pytest.mark.parametrize(("size", "rate"), SIZES_OF_A100)
def test_a_gpus_data_sheet_is_told_and_judges_nothing(size, rate):
    gpus, words = [host(0, devices=(A100,) * 8)], ("world_size=8", "device=cuda")
    found = together(
        [meeting(0, listens=("lo:1",))], [pair(0, 1, rate), pair(0, 2, rate)], between="ranks",
        timings=[timing(rate, size)],
    )  # fmt: skip
    checks = list(of_ranks(case(gpus, found, *words, gpus=8, lab=False)))
    assert wrong(checks) == []
    told = {one.name: one.text for one in checks}
    for name in ("links", "all-reduce"):
        assert told[name].endswith("; 300 GB/s at best (NVLink 3 with NVSwitch)")


def among_ranks(gpu, rates):
    """The checks of one host's ranks, by the rates of pairs."""
    gpus, words = [host(0, devices=(gpu,) * 4)], ("world_size=4", "device=cuda")
    pairs = [pair(a, b, rate) for (a, b), rate in zip(itertools.combinations(range(4), 2), rates, strict=True)]
    found = together([meeting(0, listens=("lo:1",))], pairs, between="ranks")
    return wrong(of_ranks(case(gpus, found, *words, gpus=4, lab=False)))


@pytest.mark.parametrize("gpu", [V100, "NVIDIA L40S", "somebody's GPU"])
def test_pairs_of_a_mesh_are_joined_unlike_and_a_rank_that_is_slow_with_all_is_named(gpu):
    # Of a mesh a pair has two links, one, or none at all.
    assert among_ranks(gpu, [48e9, 24e9, 48e9, 48e9, 9e9, 24e9]) == []
    (slow,) = among_ranks(gpu, [48e9, 24e9, 9e9, 48e9, 9e9, 9e9])
    assert slow[:3] == ("links", "failed", "rank 3")
    assert "19 % of the best pair, ranks 0 and 1" in slow[3]


def test_pairs_over_a_switch_are_joined_alike():
    (slow,) = among_ranks(A100, [150e9, 150e9, 150e9, 150e9, 20e9, 150e9])
    assert slow[:3] == ("links", "failed", "ranks 1 and 3")


def all_reduces(words, *timings, hosts=3, **where):
    """The check of the model's own all-reduce."""
    found = case([host(node) for node in range(hosts)], three(1e9, 1e9, 1e9), *words, **where)
    found = found._replace(together=together(found.together.hosts, found.together.pairs, timings=timings))
    return [one for one in of_ranks(found) if one.name == "all-reduce"]


def test_the_models_largest_all_reduce_stands_beside_what_its_links_should_give():
    words = ("world_size=3", "nodes=3", "link=1gbit")
    (sound,) = all_reduces(words, timing(1e6, 1000), timing(110e6), timing(1e6, operation="broadcast"))
    assert (sound.status, sound.text) == (
        "ok",
        "110 MB/s bus bandwidth with 19.1 MiB; 117 MB/s expected (link = 1gbit)",
    )
    (slow,) = all_reduces(words, timing(0.25 * 117e6))
    assert (slow.status, slow.where) == ("warning", "all ranks")
    assert slow.hint


def test_a_small_all_reduce_is_not_expected_to_take_less_than_one_of_one_element():
    (small,) = all_reduces(("world_size=3", "nodes=3", "link=1gbit"), timing(25e6, 3000))
    assert small.status == "ok"  # 4,000 bytes on the wire take 34 us, and one element 100 us
    assert "29.8 MB/s expected" in small.text


def test_without_a_data_sheet_an_all_reduce_is_told_and_not_judged():
    (told,) = all_reduces(("world_size=3", "nodes=3"), timing(1e6))
    assert (told.status, told.text) == (
        "ok",
        "1.00 MB/s bus bandwidth with 19.1 MiB; no known rate to hold it against",
    )


def test_a_ring_is_as_fast_as_the_slower_of_a_hosts_links_and_its_network(monkeypatch):
    (run,) = largest_world(runs("world_size=16", "nodes=2", "device=cuda", "protocol=weak", gpus=8, lab=False))
    (one_host,) = largest_world(runs("world_size=8", "device=cuda", "protocol=weak", gpus=8, lab=False))
    assert of_ring(one_host, A100) == Expected(300e9, "NVLink 3 with NVSwitch")
    assert of_ring(run, "somebody's GPU") is None
    assert of_ring(run, A100) is None  # its network is assumed
    device = catalog.match(A100)
    network = replace(device.inter_node, source="its data sheet")
    monkeypatch.setattr(catalog, "match", lambda name: replace(device, inter_node=network))
    assert of_ring(run, A100) == Expected(network.bytes_per_s, network.name)  # a rank's NVLink is faster


def test_a_slow_rank_inside_one_of_several_hosts_is_named():
    words = ("world_size=8", "nodes=2", "device=cuda")
    gpus = [host(node, devices=(A100,) * 4) for node in (0, 1)]
    inside = [pair(a, b, 20e9 if 6 in (a, b) else 250e9) for a, b in ((4, 5), (4, 6), (4, 7), (5, 6), (5, 7), (6, 7))]
    found = together([meeting(0), meeting(1)], [pair(0, 1, 24e9)], inside=inside)
    (slow,) = wrong(of_ranks(case(gpus, found, *words, gpus=4, lab=False)))
    assert slow[:3] == ("links inside", "failed", "rank 6")


def test_a_slow_pair_is_no_slow_member():
    words = ("world_size=4", "nodes=2", "device=cuda")
    gpus = [host(node, devices=(A100,) * 2) for node in (0, 1)]
    found = together([meeting(0), meeting(1)], [pair(0, 1, 24e9)], inside=[pair(0, 1, 250e9), pair(2, 3, 20e9)])
    (slow,) = wrong(of_ranks(case(gpus, found, *words, gpus=2, lab=False)))
    assert slow[:3] == ("links inside", "failed", "ranks 2 and 3")


def test_between_ranks_of_cpus_the_hosts_memory_is_told_and_not_judged():
    found = together([meeting(0), meeting(1)], [pair(0, 1, 1e9)], inside=[pair(0, 1, 1e9), pair(2, 3, 0.5e9)])
    judged = list(of_ranks(case([host(0), host(1)], found, "world_size=4", "nodes=2")))
    assert wrong(judged) == []
    (told,) = [one.text for one in judged if one.name == "links inside"]
    assert told == "750 MB/s with 19.1 MiB; no known rate to hold it against"
