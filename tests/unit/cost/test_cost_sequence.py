"""Sequence parallelism's closed forms; a process test holds them against what ranks do."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitscale.cost import models, sequence, vit
from vitscale.cost.collectives import Links
from vitscale.cost.run import Machinery, estimate_run
from vitscale.cost.step import estimate_step

names, ranks = st.sampled_from(models.names()), st.integers(1, 16)


@given(st.integers(0, 10_000), ranks)
def test_shares_are_as_even_as_they_go_and_the_first_is_the_largest(total, count):
    dealt = sequence.shares(total, count)
    assert sum(dealt) == total
    assert len(dealt) == count
    assert dealt[0] - dealt[-1] <= 1
    assert sorted(dealt, reverse=True) == list(dealt)


@given(names)
def test_one_rank_is_the_plain_model(name):
    shape = models.shape(name)
    assert sequence.training_flop(shape, 1) == vit.training_flop(shape)
    assert sequence.activation_bytes(shape, 3, "bf16", 1) == vit.activation_bytes(shape, 3, "bf16")
    assert sequence.collectives(shape, micro_batch=3, grad_accum=2, precision="fp32", ranks=1) == ()


@pytest.mark.parametrize("count", [2, 3, 4, 6])
def test_blocks_fall_as_one_over_the_ranks_where_heads_and_tokens_divide(count):
    shape = replace(models.shape("vit_base_patch16_gap_224", 384), heads=12)
    deeper = replace(shape, depth=shape.depth + 1)

    def of_block(whole, part):
        return part(deeper) - part(shape), whole(deeper) - whole(shape)

    flop, whole_flop = of_block(vit.training_flop, lambda one: sequence.training_flop(one, count))
    assert count * flop == whole_flop
    kept, whole_kept = of_block(
        lambda one: vit.activation_bytes(one, 1, "bf16"), lambda one: sequence.activation_bytes(one, 1, "bf16", count)
    )
    assert count * kept / whole_kept == pytest.approx(17 / 16, rel=0.005)


def test_heads_that_do_not_divide_leave_attention_at_its_largest_share():
    shape = models.shape("vit_tiny_patch16_224", 1024)  # 3 heads, 4,097 tokens
    saved = vit.activation_bytes(shape, 1, "fp32") - sequence.activation_bytes(shape, 1, "fp32", 2)
    without_heads = replace(shape, heads=4, width=256, mlp_width=1024)
    saved_evenly = vit.activation_bytes(without_heads, 1, "fp32") - sequence.activation_bytes(
        without_heads, 1, "fp32", 2
    )
    assert saved / vit.activation_bytes(shape, 1, "fp32") < 0.45
    assert saved_evenly / vit.activation_bytes(without_heads, 1, "fp32") > 0.45


@given(names, st.integers(2, 8), st.integers(1, 4))
def test_bytes_grow_with_images_and_accumulation(name, count, times):
    shape = models.shape(name)
    told = {"precision": "bf16", "ranks": count}
    (one,) = sequence.collectives(shape, micro_batch=1, grad_accum=1, **told)
    (more,) = sequence.collectives(shape, micro_batch=2, grad_accum=times, **told)
    assert more.bytes == 2 * times * one.bytes
    assert more.calls == times * one.calls


def test_the_exchange_is_communication_that_compute_waits_for():
    from vitscale.hardware import catalog

    h100 = catalog.device("h100")
    told = {
        "micro_batch": 1, "grad_accum": 1, "engine": "deepspeed", "zero_stage": 0, "precision": "bf16",
        "device": h100, "links": h100.links(8), "ranks_per_node": 8,
    }  # fmt: skip
    shape = models.shape("vit_large_patch16_224", 1024)
    apart = estimate_step(shape, data_parallel=8, **told)
    shared = estimate_step(shape, data_parallel=2, sequence_parallel=4, **told)
    assert 0.2 < shared.compute_s / apart.compute_s < 0.3
    assert shared.communication_s > apart.communication_s
    assert shared.exposed_comm_s == pytest.approx(shared.communication_s)
    unknown = estimate_step(shape, data_parallel=1, sequence_parallel=4, **{**told, "links": Links(None, None)})
    assert unknown.communication_s is None


def test_a_run_keeps_the_state_of_the_world_and_the_activations_of_its_share(make):
    machinery = Machinery(None, Links(None, None), None)
    plain = estimate_run(make.make_spec(4, zero_stage=3, micro_batch=16), machinery)
    shared = estimate_run(
        make.make_spec(4, zero_stage=3, data_parallel=2, sequence_parallel=2, micro_batch=32), machinery
    )
    assert shared.memory.model_state == plain.memory.model_state
    assert shared.flop_per_step == plain.flop_per_step
    assert {one.operation for one in shared.collectives} == {"all_gather", "reduce_scatter", "all_to_all"}
    assert shared.memory.activations_bytes > plain.memory.activations_bytes  # 3 heads do not divide by 2


@pytest.mark.parametrize("count", [2, 4])
def test_attention_that_is_not_fused_keeps_the_weights_of_own_heads(count):
    shape = models.shape("vit_base_patch16_gap_224", 384)  # 16 heads
    fused, written = (sequence.activation_bytes(shape, 2, "bf16", count, fused_attention=one) for one in (True, False))
    assert count * (written - fused) == 2 * shape.depth * vit.scores_bytes(shape, "bf16")
