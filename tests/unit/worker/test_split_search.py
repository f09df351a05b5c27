"""Which split of a run's images is chosen: the fastest of those that are timed, no rank with more than it holds."""

from types import SimpleNamespace

import pytest

pytest.importorskip("torch")

import torch

from vitscale.config.knobs import EngineSection
from vitscale.cost.collectives import Links
from vitscale.cost.run import Machinery, estimate_run, most_images
from vitscale.errors import MemoryExceeded
from vitscale.records.round import Round
from vitscale.records.schema import Split
from vitscale.worker import uneven
from vitscale.worker.__main__ import _kind
from vitscale.worker.uneven import require_room, search

EVEN = (32, 32)


def chosen(rates, most, even=EVEN, **more):
    """The choice, and what was timed on the way, where a rank's time is in proportion to its images."""
    timed = []

    def seconds(shares, number):
        timed.append(shares.images)
        assert number == len(timed)
        assert all(own <= held * parts for own, parts, held in zip(*shares, most, strict=True))
        return [own / rate for own, rate in zip(shares.images, rates, strict=True)]

    return search(even, most, seconds, **more), timed


def test_with_room_enough_images_are_dealt_by_rate():
    found, timed = chosen([300.0, 100.0], [64, 64])
    assert (found.micro_batches, found.full) == ((48, 16), None)
    assert timed == [EVEN, (48, 16)]


def test_a_fast_device_with_little_memory_is_filled_and_the_others_take_the_rest():
    found, timed = chosen([300.0, 100.0], [40, 64])
    assert (found.micro_batches, found.full) == ((40, 24), (0,))
    assert timed == [EVEN, (40, 24)]


def test_an_even_split_that_one_device_does_not_hold_is_not_timed():
    found, timed = chosen([300.0, 100.0], [24, 64])
    assert (found.micro_batches, found.full) == ((24, 40), (0,))
    assert timed == [(24, 40)]


def test_in_parts_a_fast_device_with_little_memory_keeps_its_share():
    found, timed = chosen([300.0, 100.0], [24, 64], parts=True)
    assert (found.micro_batches, found.micro_steps, found.full) == ((48, 16), (2, 1), None)
    assert found.at_once == (24, 16)
    assert timed == [EVEN, (48, 16)]


def test_devices_of_one_speed_and_unlike_memory_take_the_same_in_unlike_micro_steps():
    found, _ = chosen([100.0, 101.0], [64, 12], parts=True)
    assert (found.micro_batches, found.micro_steps) == ((34, 30), (1, 3))  # 32 are not three equal parts
    found, _ = chosen([100.0, 101.0], [64, 16], parts=True)
    assert (found.micro_batches, found.micro_steps) == (EVEN, (1, 2))


def test_in_parts_where_all_hold_their_share_nothing_is_new():
    assert chosen([300.0, 100.0], [64, 64], parts=True) == chosen([300.0, 100.0], [64, 64])


def test_what_reduces_in_every_micro_step_or_has_one_has_no_unlike_numbers_of_them(make):
    def told(**fields):
        return uneven.one_count(make.make_spec(2, **fields))

    ddp = {"engine": "ddp", "zero_stage": None}
    assert told(**ddp) is told(zero_stage=0) is told(zero_stage=1) is None
    assert told(zero_stage=2) == "ZeRO stage 2 reduces gradients in every micro-step"
    assert told(engine="fsdp", zero_stage=None) == "FSDP reduces gradients in every micro-step"
    assert "engine.static_graph" in told(**ddp, knobs=EngineSection(static_graph=True))
    assert "engine.compile_mode" in told(**ddp, knobs=EngineSection(compile_mode="reduce-overhead"))
    away = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
    assert "offloaded" in told(zero_stage=1, deepspeed=away)


def test_a_rank_in_parts_has_its_own_micro_steps_and_the_images_of_its_share(make):
    spec = make.make_spec(2, grad_accum=2, micro_batch=16, knobs=EngineSection(split="proportional"))
    split = Split(micro_batches=(24, 8), micro_steps=(3, 1))
    fast, slow = (uneven.dealt(spec, split, rank) for rank in range(2))
    assert [(one.micro_batch, one.grad_accum) for one in (fast, slow)] == [(8, 6), (8, 2)]
    assert [one.images_counted(rank) for rank, one in enumerate((fast, slow))] == [48, 16]
    assert fast.global_batch == slow.global_batch == spec.global_batch


def test_a_device_that_is_full_by_its_own_rate_is_not_called_full():
    found, _ = chosen([100.0, 300.0], [16, 64])
    assert (found.micro_batches, found.full) == ((16, 48), None)


def test_devices_of_one_speed_take_the_same():
    assert chosen([100.0, 101.0], [64, 64])[0].micro_batches == EVEN


def test_too_little_memory_in_all_is_refused_with_a_batch_that_fits():
    require_room(64, [24, 40])
    with pytest.raises(MemoryExceeded) as refused:
        require_room(64, [20, 30])
    assert refused.value.message == (
        "a micro-step has 64 images, and the memory of the ranks holds 50 (20, 30): "
        "micro_batch=25 with a larger grad_accum fits"
    )
    with pytest.raises(MemoryExceeded, match="no image fits in the memory of rank 1"):
        require_room(64, [64, 0])
    assert _kind(refused.value) == "oom"


def test_a_rank_holds_what_the_plan_says_that_fits(make):
    spec = make.make_spec(2, device="cuda", knobs=EngineSection(split="proportional"))
    limit = 2 << 30
    most = most_images(spec, limit, 4096)
    assert 0 < most < 4096

    def fits(micro_batch):
        known = Machinery(None, Links(None, None), limit)
        return estimate_run(spec.model_copy(update={"micro_batch": micro_batch}), known).fits

    assert (fits(most), fits(most + 1)) == (True, False)
    assert most_images(spec, limit, most - 1) == most - 1
    assert most_images(spec, 1 << 20, 4096) == 0


@pytest.mark.parametrize(("one_machine", "sharing"), [(False, 2), (True, 4)])
def test_all_ranks_of_one_machine_share_its_memory(monkeypatch, one_machine, sharing):
    round_ = Round(
        name="0000-w4", world_size=4, nodes=2, ranks_per_node=2, device="cpu", cores=(), one_machine=one_machine,
        entries=(),
    )  # fmt: skip
    seen = []
    monkeypatch.setattr(uneven.devices, "probe", lambda: SimpleNamespace(memory_bytes=16 << 30))
    monkeypatch.setattr(uneven, "most_images", lambda spec, memory_bytes, limit: seen.append(memory_bytes) or limit)
    monkeypatch.setattr(uneven, "gathered", lambda document, ranks: [document])
    ranks = SimpleNamespace(device=torch.device("cpu"))
    assert uneven._room(SimpleNamespace(micro_batches=(4, 4)), ranks, round_.sharing) == [8]
    assert seen == [(16 << 30) // sharing]
