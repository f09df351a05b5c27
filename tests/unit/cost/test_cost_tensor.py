"""Tensor parallelism's closed forms; a process test holds them against what ranks do."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitscale.cost import models, tensor, vit
from vitscale.cost.collectives import Collective, Link, Links
from vitscale.cost.run import Machinery, estimate_run
from vitscale.cost.step import estimate_step

SHAPE = models.shape("vit_base_patch16_224")
names = st.sampled_from([name for name in models.names() if not models.shape(name).mlp_norm])
UNKNOWN = Machinery(None, Links(None, None), None)


@given(names)
def test_one_rank_has_the_whole_model(name):
    shape = models.shape(name)
    assert tensor.part(shape, 1) == shape
    assert tensor.collectives(shape, micro_batch=3, grad_accum=2, precision="fp32", ranks=1) == ()


@given(names)
def test_a_rank_has_a_part_of_what_is_divided_and_all_else(name):
    shape = models.shape(name)
    ranks = next(count for count in (4, 3, 2, 1) if shape.heads % count == shape.mlp_width % count == 0)
    own = tensor.part(shape, ranks)
    width, hidden, firsts = shape.width, shape.mlp_width, 1 if shape.mlp == "mlp" else 2
    divided = 4 * width**2 + (firsts + 1) * width * hidden
    divided += 3 * width * shape.qkv_bias + firsts * hidden * shape.proj_bias
    assert vit.parameters(own) == vit.parameters(shape) - shape.depth * (divided - divided // ranks)


@pytest.mark.parametrize("ranks", [2, 3, 4, 6, 12])
def test_blocks_fall_as_one_over_the_ranks(ranks):
    def of_block(figure):
        deeper = replace(SHAPE, depth=SHAPE.depth + 1)
        whole = figure(deeper) - figure(SHAPE)
        return (figure(tensor.part(deeper, ranks)) - figure(tensor.part(SHAPE, ranks))) / whole

    assert of_block(vit.training_flop) == pytest.approx(1 / ranks)
    assert of_block(vit.parameters) == pytest.approx(1 / ranks, abs=0.001)
    # Of 16 rows of width D, 4 are inputs and outputs of norms, which every rank has whole.
    assert of_block(lambda shape: vit.activation_bytes(shape, 1, "bf16")) == pytest.approx(
        (4 + 12 / ranks) / 16, rel=0.01
    )


def test_every_block_has_four_all_reduces_of_its_tokens():
    told = {"micro_batch": 8, "grad_accum": 3, "precision": "bf16", "ranks": 4}
    assert tensor.collectives(SHAPE, **told) == (Collective("all_reduce", 3 * 12 * 4, 3 * 12 * 4 * 8 * 197 * 768 * 2),)
    gated = models.shape("aimv2_huge_patch14_224")
    assert tensor.collectives(gated, **told)[0].calls == 3 * 24 * 5


def test_a_run_has_a_part_of_the_model_and_reduces_it_over_the_groups(make):
    model = {"name": "vit_small_patch16_224", "img_size": 32, "patch_size": 4, "num_classes": 10}
    whole = make.make_spec(4, engine="ddp", zero_stage=None, model=model)
    plain, shared = (
        estimate_run(spec, UNKNOWN)
        for spec in (whole, whole.model_copy(update={"data_parallel": 2, "tensor_parallel": 2, "micro_batch": 32}))
    )
    assert (shared.parameters, shared.flop_per_step) == (plain.parameters, plain.flop_per_step)
    own = shared.memory.model_state.parameters_bytes
    assert 0.5 < own / plain.memory.model_state.parameters_bytes < 0.51
    gradients, exchange = shared.collectives
    assert gradients.bytes == own
    assert exchange.bytes == 4 * 12 * 32 * 65 * 384 * 4


def test_a_group_alone_reduces_no_gradients(make):
    model = {"name": "vit_small_patch16_224", "img_size": 32, "patch_size": 4, "num_classes": 10}
    for stage in (0, 3):
        spec = make.make_spec(2, zero_stage=stage, model=model, data_parallel=1, tensor_parallel=2)
        (exchange,) = estimate_run(spec, UNKNOWN).collectives
        assert exchange.calls == 4 * 12


def test_groups_side_by_side_share_the_network_between_nodes():
    network = Links(Link(300e9, 0.0), Link(50e9, 0.0))
    told = {
        "micro_batch": 1, "grad_accum": 1, "engine": "ddp", "zero_stage": None, "precision": "bf16", "device": None,
        "links": network, "flop_per_s": 1e14,
    }  # fmt: skip
    shape = models.shape("vit_large_patch16_224")
    exchange_s = 24 * 4 * 197 * 1024 * 2 * 2 * 7 / 8 / 300e9
    own = tensor.part(shape, 8)
    found = estimate_step(shape, data_parallel=2, tensor_parallel=8, ranks_per_node=8, **told)
    # All eight parts of the gradients cross each node's border once.
    assert found.communication_s == pytest.approx(8 * 2 * vit.parameters(own) / 50e9 + exchange_s)
    assert found.compute_s == pytest.approx(vit.training_flop(own) / 1e14)
    inside = estimate_step(shape, data_parallel=1, tensor_parallel=8, ranks_per_node=8, **told)
    assert inside.exposed_comm_s == pytest.approx(exchange_s)
