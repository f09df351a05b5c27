"""Bytes of a rank, by stage; `test_cost_deepspeed.py` compares them with DeepSpeed itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitscale.cost import memory, models, vit

STAGES = st.sampled_from([0, 1, 2, 3])
PRECISIONS = st.sampled_from(["fp32", "bf16", "fp16"])
MOMENTS = st.sampled_from([1, 2])


def state(parameters=1000, engine="deepspeed", zero_stage=0, precision="bf16", data_parallel=1, moments=2):
    return memory.model_state_bytes(
        parameters,
        engine=engine,
        zero_stage=zero_stage,
        precision=precision,
        data_parallel=data_parallel,
        moments=moments * parameters,
    )


@pytest.mark.parametrize(
    ("zero_stage", "precision", "bytes_per_parameter"),
    [(0, "fp32", 16), (0, "bf16", 16), (1, "fp32", 8 + 3), (1, "bf16", 4 + 3), (2, "fp16", 2 + 3.5), (3, "bf16", 4)],
)
def test_state_per_parameter_at_four_ranks_is_the_derived_sum(zero_stage, precision, bytes_per_parameter):
    assert state(4000, zero_stage=zero_stage, precision=precision, data_parallel=4).total_bytes == (
        4000 * bytes_per_parameter
    )


@given(st.integers(1, 10**9), STAGES, PRECISIONS, MOMENTS, st.integers(1, 512), st.integers(1, 512))
def test_more_ranks_never_need_more_state(parameters, zero_stage, precision, moments, one, other):
    few, many = sorted((one, other))
    less = state(parameters, "deepspeed", zero_stage, precision, many, moments)
    more = state(parameters, "deepspeed", zero_stage, precision, few, moments)
    assert less.optimizer_bytes <= more.optimizer_bytes
    assert less.total_bytes <= more.total_bytes


@given(st.integers(1, 10**9), STAGES, PRECISIONS, MOMENTS, st.integers(1, 512))
def test_state_is_the_sum_of_its_parts(parameters, zero_stage, precision, moments, ranks):
    found = state(parameters, "deepspeed", zero_stage, precision, ranks, moments)
    assert found.total_bytes == found.parameters_bytes + found.gradients_bytes + found.optimizer_bytes


@given(st.integers(10**4, 10**9), PRECISIONS, MOMENTS, st.integers(2, 512))
def test_a_higher_stage_never_needs_more_than_the_one_below(parameters, precision, moments, ranks):
    totals = [state(parameters, "deepspeed", stage, precision, ranks, moments).total_bytes for stage in (1, 2, 3)]
    assert totals == sorted(totals, reverse=True)


def test_ddp_shards_nothing_whatever_the_stage_says():
    assert state(engine="ddp", zero_stage=3, data_parallel=8) == state(engine="ddp", zero_stage=None)


def test_tensors_below_the_threshold_persist():
    assert memory.persistent_elements([10, 99_999, 100_000, 5], 100_000) == 10 + 99_999 + 5


def rank(device="cuda", **changes):
    tensors = vit.parameter_tensors(models.shape("vit_base_patch16_224"))
    values = {"engine": "deepspeed", "zero_stage": 0, "precision": "bf16", "data_parallel": 8, **changes}
    return memory.rank_memory(tensors, 10**9, device=device, moments=2 * sum(tensors), **values)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_rank_memory_is_the_sum_of_its_parts(zero_stage):
    found = rank(zero_stage=zero_stage)
    assert found.total_bytes == found.model_state.total_bytes + found.activations_bytes + found.buckets_bytes


def test_a_lone_rank_flattens_nothing_but_at_zero_0():
    model = 2 * 86_567_656
    sizes = [rank(zero_stage=stage, data_parallel=1).buckets_bytes for stage in range(4)]
    assert sizes == [model, 10**9 - model, 10**9, 10**9 + model]


def test_default_bucket_takes_a_gigabyte_on_a_gpu_and_at_most_the_model_on_a_cpu():
    assert rank(zero_stage=1).buckets_bytes == 10**9
    assert rank(zero_stage=1, device="cpu").buckets_bytes == 2 * 86_567_656


def test_zero_2_flattens_what_it_sends_beside_the_bucket():
    assert rank(zero_stage=2).buckets_bytes == 10**9 + 2 * 86_567_656
    assert rank(zero_stage=2, reduce_bucket_elements=10**7).buckets_bytes == 2 * 2 * 10**7


def test_overlap_doubles_the_bucket():
    assert rank(zero_stage=2, overlap_comm=True).buckets_bytes == rank(zero_stage=2).buckets_bytes + 10**9


def test_one_rank_of_ddp_has_no_bucket_to_send():
    assert rank(engine="ddp", zero_stage=None, data_parallel=1).buckets_bytes == 0


def test_ddp_without_bucket_views_and_accelerate_hold_a_copy_of_the_gradients():
    bucket = rank(engine="ddp", zero_stage=None, gradient_as_bucket_view=False).buckets_bytes
    assert bucket == 2 * 86_567_656 == rank(engine="accelerate", zero_stage=None).buckets_bytes
    assert rank(engine="ddp", zero_stage=None).buckets_bytes == 0
