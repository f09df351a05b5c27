"""Ranks that share weights in a study: who counts in the batch identity, and what is skipped with its rule."""

import pytest
from test_grid import grid
from test_paper_studies import HERE
from test_paper_studies import grid as grid_of

from vitscale.errors import UsageError

SMALL = {"name": "vit_small_patch16_224"}  # 6 heads, MLP of 1,536


def test_ranks_that_share_weights_take_part_in_the_batch_identity_as_one():
    found = grid(model=SMALL, world_size=[1, 2, 4], tensor_parallel=[1, 2])
    assert [(run.world_size, run.tensor_parallel, run.data_parallel, run.micro_batch) for run in found.runs] == [
        (1, None, 1, 64), (2, None, 2, 32), (4, None, 4, 16), (2, 2, 1, 64), (4, 2, 2, 32),
    ]  # fmt: skip
    assert [run.data_rank(rank) for run in found.runs[-1:] for rank in range(4)] == [0, 0, 1, 1]
    assert len({run.series for run in found.runs}) == 2
    assert "-tp2-" in found.runs[-1].run_id
    (skipped,) = found.skipped
    assert skipped.label == "strong, deepspeed, zero_stage 0, fp32, tensor_parallel 2, global_batch 64, 1 process"
    assert skipped.why.startswith("`tensor_parallel = 2` does not divide `world_size = 1`")


@pytest.mark.parametrize(
    ("model", "ranks", "why", "hint"),
    [
        ({}, 2, "does not divide the 3 heads of `vit_tiny_patch16_224`", "tensor_parallel=1"),
        (SMALL, 4, "does not divide the 6 heads of `vit_small_patch16_224`", "tensor_parallel=3"),
        (
            {"name": "aimv2_huge_patch14_224"},
            3,
            "does not divide the 4,096 hidden units of the MLP",
            "tensor_parallel=2",
        ),
        ({"name": "beit3_base_patch16_224"}, 2, "have a norm over what would be divided", "sequence_parallel"),
    ],
)
def test_blocks_that_do_not_fall_into_parts_are_skipped(model, ranks, why, hint):
    with pytest.raises(UsageError, match=why) as refused:
        grid(model=model, world_size=ranks, tensor_parallel=ranks, global_batch=48)
    assert refused.value.hint.startswith(hint)


def test_tokens_and_weights_are_not_shared_at_once():
    found = grid(model=SMALL, world_size=4, tensor_parallel=[1, 2], sequence_parallel=[1, 2])
    assert [(run.sequence_parallel, run.tensor_parallel) for run in found.runs] == [(None, None), (None, 2), (2, None)]
    (skipped,) = found.skipped
    assert skipped.why.startswith("`sequence_parallel = 2` with `tensor_parallel = 2`: ranks share either the tokens")


def test_each_engine_of_the_shipped_study_shares_images_tokens_or_weights():
    runs = grid_of("engines_shared", HERE).runs
    ways = ((None, None), (2, None), (None, 2))
    wanted = {(engine, *way) for engine in ("deepspeed", "ddp", "fsdp") for way in ways}
    assert {(run.engine, run.sequence_parallel, run.tensor_parallel) for run in runs} == wanted
    assert len(runs) == 9


def test_engines_that_have_no_groups_are_skipped(monkeypatch):
    monkeypatch.setattr("vitscale.study.engines.find_spec", lambda name: name)
    found = grid(model=SMALL, world_size=2, tensor_parallel=2, engine=["ddp", "fsdp", "deepspeed", "accelerate"])
    assert [run.engine for run in found.runs] == ["ddp", "fsdp", "deepspeed"]
    assert "`engine = accelerate` takes every rank for one with other images" in found.skipped[0].why


def test_a_moving_average_needs_whole_weights():
    train = {"epochs": 1, "ema": 0.9}
    with pytest.raises(UsageError, match="needs whole weights on each rank, and `tensor_parallel = 2` shards them"):
        grid(model=SMALL, world_size=2, tensor_parallel=2, engine="ddp", train=train)
