"""A rank has the device that was asked for, or ends: never another kind, never one that another rank has."""

import pytest

pytest.importorskip("torch")

import torch

from vitscale.errors import SetupError
from vitscale.worker.distributed import _own_device


@pytest.mark.parametrize(
    ("visible", "seen", "told"),
    [("0", 1, " (CUDA_VISIBLE_DEVICES=0)"), ("", 0, " (CUDA_VISIBLE_DEVICES=)"), (None, 1, "")],
)
def test_a_rank_beyond_the_devices_that_it_sees_is_refused(monkeypatch, visible, seen, told):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(SetupError) as caught:
        _own_device("cuda", 5, 1)
    assert caught.value.message == f"rank 5 needs GPU 1 of its host, and torch sees {seen} there{told}"
    assert "unset CUDA_VISIBLE_DEVICES" in caught.value.hint


def test_each_rank_of_a_host_has_a_device_of_its_own(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert [_own_device("cuda", rank, rank % 2).index for rank in range(4)] == [0, 1, 0, 1]
    assert chosen == [torch.device("cuda", index) for index in (0, 1, 0, 1)]


def test_a_rank_on_a_cpu_takes_no_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: pytest.fail("a GPU was taken"))
    assert _own_device("cpu", 0, 0) == torch.device("cpu")
