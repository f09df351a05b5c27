"""The parts of a profiled step are named, for torch's profiler and for NVTX."""

from contextlib import contextmanager

import pytest

pytest.importorskip("torch")

import torch

from vitscale.worker import profile
from vitscale.worker.distributed import Ranks
from vitscale.worker.pipeline import Batch

pytestmark = pytest.mark.filterwarnings("ignore:CUDA is not available")  # the device here only says that it is


class OneWeight:
    """An engine, and its batches."""

    def __init__(self):
        self.weight = torch.zeros(3, 10, requires_grad=True)

    def __next__(self):
        return Batch(torch.ones(4, 3), torch.zeros(4, dtype=torch.long))

    def __call__(self, images):
        return images @ self.weight

    def backward(self, loss, *, last):
        loss.backward()

    def step(self):
        self.weight.grad = None


PARTS = ["data", "forward", "backward", "data", "forward", "backward", "optimizer"]


@pytest.fixture
def ranges(monkeypatch):
    """Names of NVTX ranges, in the order in which they were entered and left."""
    seen = []

    @contextmanager
    def named(name):
        seen.append(name)
        yield
        seen.append(f"/{name}")

    monkeypatch.setattr(torch.cuda.nvtx, "range", named)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(profile, "barrier", lambda: None)
    return seen


def taken(kind, *, nvtx):
    """What the profiler saw of steps of two micro-steps each."""
    beats = []
    engine = OneWeight()
    _, events = profile.taken(Ranks(0, 0, 1, 1, torch.device(kind)), engine, engine, 2, nvtx, lambda: beats.append(1))
    assert len(beats) == profile.STEPS
    begun = sorted((one.start_ns(), one.name()) for one in events if one.activity_type() == "user_annotation")
    return [name for _, name in begun if name in PARTS]


def test_on_cuda_the_parts_of_a_traced_step_are_nvtx_ranges_too(ranges):
    assert taken("cuda", nvtx=True) == PARTS * profile.STEPS
    assert ranges == [edge for name in PARTS * profile.STEPS for edge in (name, f"/{name}")]


@pytest.mark.parametrize(("kind", "nvtx"), [("cuda", False), ("cpu", True)])
def test_elsewhere_and_untraced_there_are_none(ranges, kind, nvtx):
    assert taken(kind, nvtx=nvtx) == PARTS * profile.STEPS
    assert ranges == []
