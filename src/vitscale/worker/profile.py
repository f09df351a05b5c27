"""A few more steps under torch's profiler, after the steady window, so that no figure feels it.

`overlap` looks at what it saw; with `measure.profile` it is also written as a Chrome trace.
"""

from __future__ import annotations

import gzip
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, kineto_available, profile, record_function

from vitscale.worker.clock import NoClock
from vitscale.worker.distributed import Ranks, barrier, largest
from vitscale.worker.engines import Engine
from vitscale.worker.loop import Losses, run_steps
from vitscale.worker.pipeline import Batch, Batches

STEPS = 3
MOST_BYTES = 1 << 30
"""A trace that would be larger before it is compressed is not written."""
_EVENT_BYTES = 500


class Event(Protocol):
    """What Kineto tells of an event; times are nanoseconds."""

    def name(self) -> str:
        """Of an operator, a named range or a kernel."""

    def activity_type(self) -> str:
        """`cpu_op`, `user_annotation`, `kernel` …"""

    def start_ns(self) -> int:
        """Its begin."""

    def end_ns(self) -> int:
        """Its end."""

    def start_thread_id(self) -> int:
        """The thread it began on, as torch numbers them."""


def trace_name(rank: int) -> str:
    """File name of a rank's trace."""
    return f"trace.rank{rank:03d}.json.gz"


def available() -> bool:
    """Whether this torch can profile at all."""
    return bool(kineto_available())


def taken(
    ranks: Ranks, engine: Engine, batches: Batches, grad_accum: int, nvtx: bool, beat: Callable[[], None]
) -> tuple[profile, Sequence[Event]]:
    """Take `STEPS` steps under the profiler; what it saw. All ranks at once.

    The parts of a step are named ranges in it, on CUDA with `nvtx` those of NVTX too, which nsys shows. There each
    step's kernels end before the next step begins.
    """
    cuda = ranks.device.type == "cuda"
    named: Any = _Named(engine, batches, cuda and nvtx)

    def after_step(_step: int) -> None:
        if cuda:
            torch.cuda.synchronize()
        beat()

    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as seen:
        barrier()  # the profiler takes its time to start
        run_steps(range(STEPS), named, named, NoClock(), Losses(grad_accum), grad_accum, after_step)
    return seen, seen.profiler.kineto_results.events()


def write(folder: Path, ranks: Ranks, seen: profile, events: int) -> str | None:
    """Write this rank's trace into `folder`. All ranks at once. Perfetto (ui.perfetto.dev) opens it as it is.

    Returns:
        Why there is no trace, on no rank, or None.
    """
    size = largest(_EVENT_BYTES * events, ranks.device)
    about = f"about {size / 2**30:.1f} GiB of events in {STEPS} steps"
    if size > MOST_BYTES:
        return f"{about}; up to {MOST_BYTES / 2**30:.0f} GiB are written"
    # All ranks of a host write at once, and the plain trace is there until it is compressed.
    lacking = largest(size * ranks.ranks_per_node - shutil.disk_usage(tempfile.gettempdir()).free, ranks.device)
    if lacking > 0:
        return f"{about} of each rank, and the disk for temporary files lacks {lacking / 2**30:.1f} GiB for them"
    target, problem = folder / trace_name(ranks.rank), ""
    try:
        _compressed(seen, target)
    except OSError as error:
        problem = error.strerror or str(error)
    if largest(bool(problem), ranks.device):
        target.unlink(missing_ok=True)
        return f"a rank could not write it: {problem}" if problem else "another rank could not write it"
    return None


def _compressed(seen: profile, target: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:  # a trace names the path it was first written to
        plain = Path(temporary) / "trace.json"
        seen.export_chrome_trace(str(plain))
        with plain.open("rb") as source, gzip.open(target, "wb", compresslevel=6) as compressed:
            shutil.copyfileobj(source, compressed)


class _Named:
    """An engine and its batches, each part of a step a named range."""

    def __init__(self, engine: Engine, batches: Batches, nvtx: bool) -> None:
        self._engine, self._batches, self._nvtx = engine, batches, nvtx

    @contextmanager
    def _range(self, name: str) -> Iterator[None]:
        with record_function(name), torch.cuda.nvtx.range(name) if self._nvtx else nullcontext():
            yield

    def __next__(self) -> Batch:
        with self._range("data"):
            return next(self._batches)

    def __call__(self, images: Tensor) -> Tensor:
        with self._range("forward"):
            return self._engine(images)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """The engine's."""
        with self._range("backward"):
            self._engine.backward(loss, last=last)

    def step(self) -> None:
        """The engine's."""
        with self._range("optimizer"):
            self._engine.step()
