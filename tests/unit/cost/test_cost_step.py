"""The step estimate: its parts, what hides what, and what is missing."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitscale.config.knobs import EngineSection
from vitscale.config.runspec import ModelSpec
from vitscale.cost import models
from vitscale.cost.collectives import Collective, Link, Links
from vitscale.cost.run import Machinery, estimate_run
from vitscale.cost.step import estimate_step, expected_maximum, exposed_seconds, optimizer_seconds
from vitscale.cost.vit import training_flop
from vitscale.hardware.catalog import device

SHAPE = models.shape("vit_base_patch16_224")
H100 = device("h100")


def estimate(shape=SHAPE, **changes):
    values = {
        "micro_batch": 64,
        "grad_accum": 1,
        "data_parallel": 8,
        "engine": "deepspeed",
        "zero_stage": 0,
        "precision": "bf16",
        "device": H100,
        "links": H100.links(8),
        "ranks_per_node": 8,
    }
    return estimate_step(shape, **{**values, **changes})


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_step_is_the_sum_of_its_parts(zero_stage):
    found = estimate(zero_stage=zero_stage, jitter_ratio=0.02, data_s=0.01)
    parts = (found.compute_s, found.data_s, found.optimizer_s, found.exposed_comm_s, found.wait_s)
    assert found.step_s == pytest.approx(sum(parts))
    assert found.images_per_s == pytest.approx(64 * 8 / found.step_s)
    assert found.exposed_comm_s <= found.communication_s


def test_attention_whose_matrix_is_written_takes_longer_in_the_plan_too(make):
    assert estimate(fused_attention=False).compute_s > 1.05 * estimate().compute_s
    card = device("h100")
    on = Machinery(card, card.links(1), card.memory_bytes)
    model = ModelSpec(name="vit_base_patch16_224", img_size=224, patch_size=16, num_classes=10)
    spec = make.make_spec(device="cuda", simulated_device="h100", model=model, precision="bf16")
    written = spec.model_copy(update={"knobs": EngineSection(sdpa="math")})
    assert estimate_run(written, on).step.compute_s > 1.05 * estimate_run(spec, on).step.compute_s


def test_one_rank_neither_sends_nor_waits():
    found = estimate(data_parallel=1, ranks_per_node=1, jitter_ratio=0.1)
    assert (found.communication_s, found.exposed_comm_s, found.wait_s) == (0, 0, 0)


def test_a_measured_rate_replaces_the_assumed_one():
    found = estimate(flop_per_s=1e14)
    assert found.compute_s == pytest.approx(64 * training_flop(SHAPE) / 1e14)
    assert not any(text.startswith("compute") for text in found.assumptions)
    assert any(text.startswith("compute: products at 70%") for text in estimate().assumptions)


def test_a_cpu_has_no_estimate_until_its_rate_is_measured():
    links = Links(Link(1e9, 1e-5), None)
    unknown = estimate(device=None, links=links, precision="fp32")
    assert (unknown.compute_s, unknown.step_s, unknown.images_per_s) == (None, None, None)
    assert any("measured rate" in text for text in unknown.assumptions)
    known = estimate(device=None, links=links, precision="fp32", flop_per_s=5e10)
    assert known.step_s == pytest.approx(known.compute_s + known.communication_s)


def test_a_precision_without_a_peak_has_no_estimate():
    assert estimate(device=device("v100")).step_s is None


def test_an_unknown_link_leaves_compute_known_and_the_step_not():
    found = estimate(device=device("l4"), links=device("l4").links(8))
    assert found.compute_s is not None
    assert (found.communication_s, found.step_s) == (None, None)


def test_ddp_hides_what_deepspeed_zero_0_shows():
    shown, hidden = estimate(), estimate(engine="ddp", zero_stage=None)
    assert shown.exposed_comm_s == shown.communication_s
    assert hidden.exposed_comm_s < hidden.communication_s


def test_deepspeed_hides_nothing_on_a_cpu_and_ddp_does():
    cpu = {"device": None, "links": Links(Link(25e6, 1e-4), None), "precision": "fp32", "flop_per_s": 5e10}
    assert [
        (found := estimate(zero_stage=stage, overlap_comm=True, **cpu)).exposed_comm_s == found.communication_s
        for stage in (0, 1, 2, 3)
    ] == [True] * 4
    ddp = estimate(engine="ddp", zero_stage=None, **cpu)
    assert ddp.exposed_comm_s < ddp.communication_s


def test_overlap_at_zero_2_is_off_by_default_and_at_zero_3_on():
    # More than two of DeepSpeed's default buckets, or there is nothing left to send beside.
    large = models.shape("vit_gigantic_patch14_224")
    assert estimate(large, zero_stage=2).exposed_comm_s == estimate(large, zero_stage=2).communication_s
    assert (
        estimate(large, zero_stage=2, overlap_comm=True).exposed_comm_s < estimate(large, zero_stage=2).exposed_comm_s
    )
    assert (
        estimate(large, zero_stage=3).exposed_comm_s < estimate(large, zero_stage=3, overlap_comm=False).exposed_comm_s
    )


def test_one_bucket_with_the_whole_model_hides_nothing():
    assert estimate(zero_stage=2, overlap_comm=True).exposed_comm_s == estimate(zero_stage=2).exposed_comm_s


@given(st.sampled_from([None, 1, 2, 3]), st.floats(0, 10), st.floats(0, 10), st.integers(1, 50), st.integers(1, 8))
def test_exposed_time_lies_between_nothing_and_all(zero_stage, compute_s, comm_s, calls, grad_accum):
    collectives = (Collective("all_reduce", calls, 1), Collective("all_gather", 1, 1))
    exposed_s = exposed_seconds(
        collectives,
        (comm_s, comm_s / 2),
        compute_s=compute_s,
        grad_accum=grad_accum,
        zero_stage=zero_stage,
        overlap=True,
    )
    assert 0 <= exposed_s <= 1.5 * comm_s + 1e-9


def test_optimizer_moves_28_bytes_a_parameter_for_adamw_and_shards_with_zero():
    assert optimizer_seconds(1000, 2000, memory_bytes_per_s=28.0) == 1000
    assert optimizer_seconds(1000, 1000, memory_bytes_per_s=20.0, shards=4) == 250
    assert optimizer_seconds(1000, 2000, memory_bytes_per_s=None) is None


def test_expected_maximum_is_the_known_order_statistic():
    assert expected_maximum(1, 1.0) == 0
    assert expected_maximum(2, 1.0) == pytest.approx(1 / math.sqrt(math.pi), rel=1e-6)
    assert expected_maximum(3, 2.0) == pytest.approx(3 / math.sqrt(math.pi), rel=1e-6)
    assert expected_maximum(100, 1.0) == pytest.approx(2.50759, abs=1e-4)  # tables of normal order statistics


@given(st.integers(1, 200))
def test_more_ranks_wait_longer(ranks):
    assert expected_maximum(ranks, 1.0) < expected_maximum(ranks + 1, 1.0)
