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
from vitscale.worker import uneven
from vitscale.worker.__main__ import _kind
from vitscale.worker.uneven import require_room, search

EVEN = (32, 32)


def chosen(rates, most, even=EVEN):
    """The choice, and what was timed on the way, where a rank's time is in proportion to its images."""
    timed = []

    def seconds(micro_batches, number):
        timed.append(micro_batches)
        assert number == len(timed)
        return [own / rate for own, rate in zip(micro_batches, rates, strict=True)]

    return search(even, most, seconds), timed


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
