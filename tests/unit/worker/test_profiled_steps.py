"""The parts of a profiled step are named, for torch's profiler and for NVTX."""

import errno
import gzip
import os
import shutil
from contextlib import contextmanager

import pytest

pytest.importorskip("torch")

import torch

from vitscale.worker import closer, profile
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


class Unread:
    """What the profiler saw, which nobody may write."""

    def __getattr__(self, name):
        raise AssertionError(name)


def test_a_trace_above_a_gibibyte_is_refused_on_all_ranks_before_any_of_it_is_written(monkeypatch, tmp_path):
    """This rank saw little; the largest of all ranks decides."""
    told = []
    monkeypatch.setattr(profile, "largest", lambda size, device: told.append(size) or 1.5 * 2**30)
    ranks = Ranks(1, 1, 2, 2, torch.device("cpu"))
    reason = profile.write(tmp_path, ranks, Unread(), events=1000)
    assert reason == "about 1.5 GiB of events in 3 steps; up to 1 GiB are written"
    assert 0 < told[0] < 2**20
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("free", "lacks"), [(2_999_999, True), (3_000_000, False)])
def test_a_disk_too_small_for_all_ranks_of_a_host_is_told_before_it_is_full(monkeypatch, tmp_path, free, lacks):
    """Three ranks of 1 MB each."""
    disk = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(profile.shutil, "disk_usage", lambda path: disk)
    monkeypatch.setattr(profile, "largest", lambda value, device: value)
    monkeypatch.setattr(profile, "_compressed", lambda seen, target: target.write_text("a trace"))
    reason = profile.write(tmp_path, Ranks(0, 0, 3, 3, torch.device("cpu")), Unread(), events=2000)
    assert bool(reason) == lacks == (list(tmp_path.iterdir()) == [])
    assert not lacks or "of each rank, and the disk for temporary files lacks" in reason


@pytest.mark.parametrize(("own", "why"), [(True, "a rank could not write it: No space left"), (False, "another rank")])
def test_where_a_rank_cannot_write_no_rank_has_a_trace_and_the_launch_goes_on(monkeypatch, tmp_path, own, why):
    def write(seen, target):
        target.write_text("half of a trace")
        if own:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(profile, "_compressed", write)
    monkeypatch.setattr(profile, "largest", lambda value, device: True if value in (True, False) else value)
    reason = profile.write(tmp_path, Ranks(0, 0, 2, 2, torch.device("cpu")), Unread(), events=10)
    assert reason.startswith(why)
    assert list(tmp_path.iterdir()) == []


def test_a_trace_is_taken_for_no_smaller_than_it_is(monkeypatch, tmp_path):
    engine = OneWeight()
    monkeypatch.setattr(profile, "barrier", lambda: None)
    ranks, sizes = Ranks(0, 0, 1, 1, torch.device("cpu")), []
    monkeypatch.setattr(profile, "largest", lambda size, device: sizes.append(size) or size)
    seen, events = profile.taken(ranks, engine, engine, 2, False, lambda: None)
    assert profile.write(tmp_path, ranks, seen, len(events)) is None
    with gzip.open(tmp_path / "trace.rank000.json.gz") as file:
        assert len(file.read()) < 1.5 * sizes[0] + 20_000  # a trace has a head, whatever is in it


def test_without_a_profiler_steps_without_collectives_are_taken_all_the_same(monkeypatch, make):
    spec = make.make_spec(2)
    spec = spec.model_copy(update={"measure": spec.measure.model_copy(update={"profile": True})})
    monkeypatch.setattr(closer.profile, "available", lambda: False)
    untold = "this torch has no profiler"
    assert closer.refusals(spec, 48) == {"silence": None, "overlap": untold, "trace": untold, "roofline": None}
