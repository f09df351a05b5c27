"""`engine.split` in the grid: no other run where all ranks take the same, and refused where it is not exact."""

import pytest
from test_grid import grid, machine

from vitscale.cost.collectives import Links
from vitscale.cost.run import Machinery, estimate_run
from vitscale.errors import UsageError
from vitscale.study.grid import Where

GPUS = Where(machine(gpus=4))


def refusal(split="proportional", where=None, **keys):
    with pytest.raises(UsageError) as told:
        grid(world_size=2, swept={"engine.split": [split]}, **({"where": where} if where else {}), **keys)
    return told.value.message


def test_an_even_split_is_no_other_run():
    plain = [run.run_id for run in grid(world_size=[1, 2], engine="ddp", global_batch=64).runs]
    for split in ("even", (32, 32)):
        made = grid(world_size=2, engine="ddp", global_batch=64, swept={"engine.split": [split]})
        assert [run.run_id for run in made.runs] == plain[1:]


def test_one_rank_has_nothing_to_split():
    made = grid(world_size=[1, 2], engine="ddp", swept={"engine.split": ["proportional"]})
    assert [run.knobs and run.knobs.split for run in made.runs] == [None, "proportional"]


def test_micro_batches_by_rank_add_up_to_the_global_batch():
    made = grid(world_size=2, engine="ddp", global_batch=128, grad_accum=2, swept={"engine.split": [[40, 24]]})
    (run,) = made.runs
    assert run.micro_batches == (40, 24)
    assert run.micro_batch * run.data_parallel == 64
    assert sum(run.micro_batches) * run.grad_accum == run.global_batch


def test_a_split_is_an_axis_with_its_name():
    made = grid(world_size=2, engine="ddp", global_batch=64, swept={"engine.split": ["even", "proportional", [40, 24]]})
    assert list(made.labels().values()) == [
        "split even, 2 processes", "split proportional, 2 processes", "split [40, 24], 2 processes",
    ]  # fmt: skip
    assert len({run.series for run in made.runs}) == 3


@pytest.mark.parametrize(
    ("keys", "rule"),
    [
        ({"engine": "fsdp"}, "timed with whole weights, which `engine = fsdp` shards"),
        ({"engine": "deepspeed", "zero_stage": 3}, "timed with whole weights, which `zero_stage = 3` shards"),
        ({"engine": "ddp", "sequence_parallel": 2}, "with `sequence_parallel = 2` ranks take the same images"),
        ({"engine": "ddp", "tensor_parallel": 2, "where": GPUS}, "with `tensor_parallel = 2` ranks take the same"),
    ],
)
def test_what_would_not_be_exact_is_refused(keys, rule):
    assert rule in refusal(**keys)


@pytest.mark.parametrize(
    ("key", "value", "drawn"),
    [
        ("mixup", 0.2, "pairs of images"),
        ("cutmix", 1.0, "pairs of images"),
        ("rand_augment", 9, "operations"),
        ("drop_path", 0.1, "the blocks that images skip"),
    ],
)
def test_what_is_drawn_by_micro_batch_is_refused_where_something_trains(key, value, drawn):
    told = refusal(engine="ddp", train={"epochs": 1, key: value})
    assert f"`train.{key} = {value:g}` draws {drawn}" in told


@pytest.mark.parametrize(
    ("split", "rule"),
    [([40, 20], "adds up to 60 images, and a micro-step has 32 x 2 = 64"), ([20, 20, 24], "has 3 ranks")],
)
def test_a_list_of_another_size_is_refused(split, rule):
    assert rule in refusal(split, engine="ddp", global_batch=64)


def test_a_list_is_exact_where_weights_are_sharded_too():
    made = grid(world_size=2, engine=["deepspeed", "fsdp"], zero_stage=3, swept={"engine.split": [[40, 24]]})
    assert [(run.engine, run.micro_batches) for run in made.runs] == [("deepspeed", (40, 24)), ("fsdp", (40, 24))]


def test_the_largest_share_decides_what_a_step_takes():
    made = grid(world_size=2, engine="ddp", swept={"engine.split": ["even", [40, 24]]}, device="cpu")
    known = Machinery(None, Links(None, None), None, flop_per_s=1e11)
    even, uneven = (estimate_run(run, known) for run in made.runs)
    assert uneven.step.compute_s == pytest.approx(40 / 32 * even.step.compute_s)
    assert uneven.memory.activations_bytes == pytest.approx(40 / 32 * even.memory.activations_bytes)
    assert uneven.flop_per_step == even.flop_per_step
