"""The link is timed with collectives of the runs' own sizes."""

import pytest

pytest.importorskip("torch")

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from vitscale.config.load import load
from vitscale.cost.models import shape
from vitscale.cost.vit import parameters
from vitscale.data.catalog import DatasetFacts
from vitscale.hardware.probe import probe
from vitscale.study.grid import Images, build
from vitscale.study.where import Where
from vitscale.worker.distributed import Ranks
from vitscale.worker.links import EXCHANGE, OPERATIONS, calls, measure

DIGITS = Images(DatasetFacts("digits", 10, 1437, 360, 8, 8, 1, "made for this test"), "0123456789abcdef")


def specs(*words):
    study = load("quick", ("protocol=strong", "global_batch=96", *words)).study
    return build(study, Where(probe()), lambda section: DIGITS).runs


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_size_is_the_models_own_and_all_ranks_divide_it(world_size):
    size_bytes = 4 * parameters(shape("vit_tiny_patch16_224", 32, 4, 10))
    (found,) = {size for _, size in calls(specs(f"world_size={world_size}"), world_size)}
    assert found % (4 * world_size) == 0
    assert 0 <= found - size_bytes < 4 * world_size


def test_sizes_of_several_runs_are_timed_once():
    several = specs("world_size=2", "zero_stage=0,1,2", "precision=fp32,bf16")
    assert len(several) == 6
    assert len(calls(several, 2)) == 2 * len(OPERATIONS)


SHARED = ("world_size=2", "sequence_parallel=2")


def test_exchanges_are_timed_at_their_mean_size_where_runs_share_images():
    plain, shared = specs("world_size=2"), specs(*SHARED)
    assert {operation for operation, _ in calls(plain, 2)} == {*OPERATIONS}
    timed = calls([*plain, *shared], 2)
    assert [operation for operation, _ in timed][:2] == ["all_reduce", EXCHANGE]  # before time is over
    (size,) = {one for operation, one in timed if operation == EXCHANGE}
    assert [one for one in timed if one[0] != EXCHANGE] == calls(plain, 2)
    assert size not in {one for _, one in calls(plain, 2)}


def test_every_operation_is_called_with_tensors_of_the_size(monkeypatch):
    """Of two ranks, of which only this one is there."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        found = measure(specs(*SHARED), Ranks(0, 0, 2, 2, torch.device("cpu")))
    finally:
        dist.destroy_process_group()
    told = {(one.operation, one.bytes) for one in found.timings}
    assert told == {*calls(specs(*SHARED), 2)}
    assert found.left_out == 0
