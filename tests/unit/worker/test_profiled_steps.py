"""The parts of a profiled step are named, for torch's profiler and for NVTX."""

import gzip
import resource
from contextlib import contextmanager
from types import SimpleNamespace

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


ALONE = Ranks(0, 0, 1, 1, torch.device("cpu"))
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
    assert reason == "about 1.50 GiB of events in 3 steps; up to 1.00 GiB are written"
    assert 0 < told[0] < 2**20
    assert list(tmp_path.iterdir()) == []


def test_a_trace_is_taken_for_no_smaller_than_it_is(monkeypatch, tmp_path):
    engine, sizes = OneWeight(), []
    monkeypatch.setattr(profile, "barrier", lambda: None)
    monkeypatch.setattr(profile, "largest", lambda size, device: sizes.append(size) or size)
    seen, events = profile.taken(ALONE, engine, engine, 2, False, lambda: None)
    assert profile.write(tmp_path, ALONE, seen, len(events)) is None
    with gzip.open(tmp_path / "trace.rank000.json.gz") as file:
        assert len(file.read()) < 1.5 * sizes[0] + 20_000  # a trace has a head, whatever is in it


@pytest.fixture
def seen(monkeypatch):
    """What the profiler saw of a few steps of this rank, which is alone."""
    monkeypatch.setattr(profile, "barrier", lambda: None)
    monkeypatch.setattr(profile, "largest", lambda value, device: float(value))
    engine = OneWeight()
    return profile.taken(ALONE, engine, engine, 2, False, lambda: None)[0]


def test_a_trace_that_all_ranks_of_the_host_have_no_room_for_is_refused_before_any_of_it_is_written(
    monkeypatch, tmp_path
):
    monkeypatch.setattr(profile, "largest", lambda value, device: value)
    monkeypatch.setattr(profile.shutil, "disk_usage", lambda path: SimpleNamespace(free=1_500 * 2**10))
    ranks = Ranks(0, 0, 4, 4, torch.device("cpu"))
    reason = profile.write(tmp_path, ranks, Unread(), events=2**20 // 500)
    assert reason == "about 4.00 MiB of events on a host, 2.53 MiB more than its disk has free"
    assert list(tmp_path.iterdir()) == []


def test_a_disk_on_which_no_temporary_folder_can_be_made_has_nothing_free(monkeypatch, tmp_path):
    def full():
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(profile.tempfile, "gettempdir", full)
    monkeypatch.setattr(profile, "largest", lambda value, device: value)
    assert "than its disk has free" in profile.write(tmp_path, ALONE, Unread(), events=1000)


def test_a_disk_that_fills_while_a_trace_is_written_is_a_reason_and_leaves_no_part_of_it(seen, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # what Kineto and gzip write then fails, as on a disk
    try:
        reason = profile.write(tmp_path, ALONE, seen, events=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert reason == "a rank could not write its trace: its disk is full, or is not there"
    assert list(tmp_path.iterdir()) == []


def test_where_another_rank_could_not_write_its_trace_this_one_keeps_none_either(monkeypatch, seen, tmp_path):
    told = iter([1000.0, -1.0, 1.0])  # bytes, what is lacking, whether a rank could not
    monkeypatch.setattr(profile, "largest", lambda value, device: next(told))
    assert profile.write(tmp_path, ALONE, seen, events=1).startswith("a rank could not write its trace")
    assert list(tmp_path.iterdir()) == []


def test_without_a_profiler_steps_without_collectives_are_taken_all_the_same(monkeypatch, make):
    spec = make.make_spec(2)
    spec = spec.model_copy(update={"measure": spec.measure.model_copy(update={"profile": True})})
    monkeypatch.setattr(closer.profile, "available", lambda: False)
    untold = "this torch has no profiler"
    assert closer.refusals(spec, 48) == {"silence": None, "overlap": untold, "trace": untold, "roofline": None}
