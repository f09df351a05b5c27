"""Bytes on the wire and the time a ring takes for them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitscale.cost import models, vit
from vitscale.cost.collectives import (
    Collective,
    Link,
    Links,
    bus_factor,
    collective_seconds,
    regathered_elements,
    step_collectives,
)
from vitscale.hardware.catalog import device

OPERATIONS = ["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast"]
TENSORS = vit.parameter_tensors(models.shape("vit_tiny_patch16_224", 32, 4, 10))
P = sum(TENSORS)
SMALL = sum(size for size in TENSORS if size < 100_000)


def step(zero_stage, engine="deepspeed", precision="fp32", data_parallel=2, grad_accum=1, **settings):
    return step_collectives(
        TENSORS,
        engine=engine,
        zero_stage=zero_stage,
        precision=precision,
        data_parallel=data_parallel,
        grad_accum=grad_accum,
        **settings,
    )


def link_bytes(collectives, ranks=2):
    return sum(one.bytes * bus_factor(one.operation, ranks) for one in collectives)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3, None])
def test_one_rank_sends_nothing(zero_stage):
    assert step(zero_stage, data_parallel=1) == ()


def test_zero_1_and_2_move_one_and_a_half_times_what_ddp_moves():
    ddp = link_bytes(step(None, engine="ddp"))
    assert [link_bytes(step(stage)) / ddp for stage in (0, 1, 2)] == [1.0, 1.5, 1.5]


def test_only_zero_2_and_3_pay_again_for_every_micro_step():
    assert step(0, grad_accum=4) == step(0)
    assert step(1, grad_accum=4) == step(1)
    assert step(2, grad_accum=4)[0].bytes == 4 * step(2)[0].bytes
    assert step(3, grad_accum=4)[1].bytes == 4 * step(3)[1].bytes


def test_zero_3_gathers_partitioned_parameters_every_micro_step_and_persistent_ones_once():
    gathered, scattered = step(3, grad_accum=2)
    assert gathered.bytes == 4 * (2 * (P - SMALL) + SMALL)
    assert scattered == Collective("reduce_scatter", 2, 2 * 4 * P)


def test_zero_3_gathers_everything_twice_when_nothing_may_be_kept():
    assert step(3, persistence_elements=0, reuse_elements=0)[0].bytes == 2 * 4 * P
    assert regathered_elements(TENSORS, 0, P) == pytest.approx(P / 2, abs=1)
    assert regathered_elements(TENSORS) == 0


def test_sixteen_bits_halve_the_bytes():
    assert 2 * link_bytes(step(1, precision="bf16")) == link_bytes(step(1))


def test_smaller_buckets_mean_more_calls_and_the_same_bytes():
    small, one = step(2, reduce_bucket_elements=P // 4)[0], step(2)[0]
    assert (small.bytes, one.calls) == (one.bytes, 1)
    assert small.calls in (4, 5)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_one_rank_has_no_bus_traffic(operation):
    assert bus_factor(operation, 1) == 0


@given(st.integers(2, 4096))
def test_an_all_reduce_costs_a_reduce_scatter_and_an_all_gather(ranks):
    both = bus_factor("reduce_scatter", ranks) + bus_factor("all_gather", ranks)
    assert bus_factor("all_reduce", ranks) == pytest.approx(both)
    assert 1 <= bus_factor("all_reduce", ranks) < 2


NODE = Links(Link(100e9, 1e-6), Link(10e9, 5e-6))


def seconds(operation="all_reduce", size=10**9, calls=1, ranks=8, ranks_per_node=8, links=NODE):
    return collective_seconds(operation, size, calls, ranks=ranks, ranks_per_node=ranks_per_node, links=links)


def test_inside_a_node_only_the_nodes_link_counts():
    assert seconds() == pytest.approx(14 * 1e-6 + 1e9 * 1.75 / 100e9)
    assert seconds(links=Links(NODE.intra_node, None)) == seconds()


def test_across_nodes_the_slower_link_and_the_longer_delay_rule():
    assert seconds(ranks=16) == pytest.approx(30 * 5e-6 + 1e9 * 1.875 / 10e9)


def test_one_rank_a_node_needs_no_link_inside():
    assert seconds(ranks=2, ranks_per_node=1, links=Links(None, NODE.inter_node)) is not None


def test_an_unknown_link_gives_no_time():
    assert seconds(links=Links(None, None)) is None
    assert seconds(ranks=16, links=Links(NODE.intra_node, None)) is None
    assert seconds(links=Links(Link(1e9, None), None)) is None


@given(st.sampled_from(OPERATIONS), st.integers(2, 64), st.integers(0, 10**10), st.integers(0, 10**10))
def test_more_bytes_never_take_less_time(operation, ranks, one, other):
    few, many = sorted((one, other))
    assert seconds(operation, few, ranks=ranks) <= seconds(operation, many, ranks=ranks)


@pytest.mark.parametrize(
    ("name", "ranks", "size", "measured_s"),
    [
        ("a100-40gb", 16, 4 * 1024**3, 42.715e-3),  # deepops_2x_dgxa100
        ("h100", 8, 16 * 1024**3, 62.239e-3),  # aws_batch_p5_1node
        ("h100", 16, 16 * 1024**3, 69.077e-3),  # azure_ndv5_h100_2node
    ],
)
def test_catalog_links_give_measured_large_all_reduces_within_a_fifth(name, ranks, size, measured_s):
    assert seconds(size=size, ranks=ranks, links=device(name).links(8)) == pytest.approx(measured_s, rel=0.2)


def test_shaped_hundred_megabit_link_is_a_ruler():
    # 22 MB at 2 ranks over 94 Mbit/s took 1.907 s (measured on namespaces, `tc tbf`).
    link = Links(None, Link(94e6 / 8, 0.0))
    assert seconds(size=22_000_000, ranks=2, ranks_per_node=1, links=link) == pytest.approx(1.907, rel=0.03)


def test_ddps_buckets_change_calls_and_its_hooks_bytes():
    (plain,) = step(None, engine="ddp")
    (small,) = step(None, engine="ddp", ddp_bucket_bytes=2**20)
    assert (small.calls, small.bytes) == (-(-4 * P // 2**20), plain.bytes)
    (half,) = step(None, engine="ddp", ddp_hook="bf16")
    assert (half.calls, half.bytes) == (plain.calls, 2 * P)
