"""`python -m vitscale.worker rounds/<k>-w<N>/round.json`, one process per rank, in the results folder.

Serves the launches of the round in order and ends. What goes wrong is left in `failure.rank<r>.json` beside round.json;
the parent reads it, ends the other ranks and decides what comes next.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitscale.errors import ResultsError, SetupError, VitscaleError, WorkerError
from vitscale.hardware.oom_kills import oom_kills
from vitscale.hardware.position import MPICH, OPEN_MPI, Position, position
from vitscale.records.round import ASKED, DETACHED, Beat, Heartbeat, Round, asked_every_s, failure_path
from vitscale.worker import allocator, asked, hang, reach

if TYPE_CHECKING:
    from vitscale.hardware.probe import Machine
    from vitscale.worker.distributed import Ranks

_MPIRUNS = (OPEN_MPI, MPICH)
_TRACKERS = ("mlflow", "wandb")
_LAST_WORDS_S = 5.0


def main(path: Path) -> None:
    """Serve one round."""
    faulthandler.register(signal.SIGQUIT, all_threads=True)
    round_, rank, together = _read(path), 0, False
    given = dict(os.environ)  # by the starter: `_place` adds to it

    def late(error: VitscaleError) -> None:
        _leave_failure(path.parent, rank, error, together=False)
        sys.stderr.write(f"{error.message}\n")
        sys.stderr.flush()
        os._exit(1)

    try:
        place = _place(round_)
        rank = place.rank
        allocator.start_again_with(round_.allocator, given)
        hang.answer(rank)
        if _has_parent(place):
            threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
        if place.starter in _MPIRUNS and round_.nodes > 1:
            asked.obey(path.parent / ASKED, asked_every_s(round_.world_size))
        heartbeat = Heartbeat(path.parent, rank, round_.ranks_per_node)
        heartbeat.beat(Beat(0, "import", 0, 0, None))
        if cores := round_.cores_of(rank):
            os.sched_setaffinity(0, cores)  # before torch: its threads inherit it
        os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # else torch's profiler calls a host without GPUs an error
        os.environ.setdefault("TEARDOWN_CUPTI", "1")  # else it listens on, in the launches that follow
        ranks, machine, import_s = _join(round_, path.parent, place, late)
        together = True
        number = _serve(round_, path.parent, heartbeat, ranks, machine, import_s)
    except BaseException as error:
        _leave_failure(path.parent, rank, error, together=together)
        raise
    heartbeat.beat(Beat(number, "done", 0, 0, None))


def _read(path: Path) -> Round:
    try:
        return Round.read(path)
    except ResultsError:
        if not path.exists():  # then no file is a way to tell; the starter brings what is printed
            sys.stderr.write(f"host {socket.gethostname()} does not see the results folder\n")
        raise


def _has_parent(place: Position) -> bool:
    """Whether the tool's process holds the other end of our standard input."""
    if DETACHED in os.environ:
        return False
    return place.rank == 0 or place.starter not in _MPIRUNS  # which hand theirs to rank 0 alone


def _place(round_: Round) -> Position:
    """Which rank this is; from here on the environment says it in torchrun's names.

    Raises:
        SetupError: nobody told, or not as many ranks were started as the round has.
    """
    place = position(os.environ)
    os.environ |= place.variables()
    if place.starter in _MPIRUNS:
        # mpirun tells of processes; of what the kernel ended on its host, nobody would know how often it was before.
        sys.stderr.write(f"rank {place.rank} is process {os.getpid()}, after {oom_kills()} OOM kills\n")
        sys.stderr.flush()
    if (place.world_size, place.local_world_size) != (round_.world_size, round_.ranks_per_node):
        raise SetupError(
            f"{place.starter} started {place.world_size} ranks, {place.local_world_size} on each host; "
            f"asked for were {round_.world_size}, {round_.ranks_per_node} on each host"
        )
    return place


def _join(
    round_: Round, folder: Path, place: Position, late: Callable[[VitscaleError], None]
) -> tuple[Ranks, Machine, float]:
    """Import torch, look at this host, and meet the other ranks; how long the imports took the slowest of them."""
    import torch

    from vitscale.config.runspec import RunSpec
    from vitscale.hardware.probe import probe

    with _without_trackers():  # what takes longest, before the ranks wait for one another
        from vitscale.worker import examine, measure, meeting, train  # noqa: F401
        from vitscale.worker.devices import keep_freed_memory
        from vitscale.worker.distributed import largest

    imported_s = _process_age_s()
    first = RunSpec.model_validate(round_.entries[0].spec)
    if first.threads_per_rank is not None:
        torch.set_num_threads(first.threads_per_rank)
        torch.set_num_interop_threads(1)
    if round_.device == "cpu":
        keep_freed_memory()
    machine = probe()
    if round_.examine and place.local_rank == 0:
        examine.write_host(folder, round_, place, machine)
    ranks = meeting.join(round_, place, first.torch_backend, machine, os.environ, late)
    if round_.nodes > 1 and first.torch_backend == "gloo":  # NCCL's sockets stand idle where it talks over InfiniBand
        reach.watch(reach.wires(), lambda address: _cut_off(address, late))
    return ranks, machine, largest(imported_s, ranks.device)


def _cut_off(address: str, late: Callable[[VitscaleError], None]) -> None:
    """End this rank: a host that it needs does not answer."""
    patience = threading.Timer(_LAST_WORDS_S, _end)  # the results folder may lie behind the same cut
    patience.daemon = True
    patience.start()
    late(WorkerError(f"host `{address}` has not answered for {reach.SILENCE_S:g} s"))


def _serve(round_: Round, folder: Path, heartbeat: Heartbeat, ranks: Ranks, machine: Machine, import_s: float) -> int:
    from vitscale.config.runspec import RunSpec
    from vitscale.records.schema import Times
    from vitscale.worker import engines, examine, gemm, links, meeting
    from vitscale.worker.distributed import barrier
    from vitscale.worker.measure import Launch
    from vitscale.worker.overhead import Meter
    from vitscale.worker.parity import Proofs
    from vitscale.worker.train import Training

    with _without_trackers():
        for engine in {RunSpec.model_validate(entry.spec).engine for entry in round_.entries}:
            engines.prepare(engine, round_.device)
    if round_.examine:
        examine.examine(folder, round_, ranks, heartbeat)
        return len(round_.entries)
    barrier()
    process_start_s, met = _process_age_s(), time.perf_counter()
    if round_.nodes > 1:
        meeting.write_listening(folder, ranks)
    if round_.world_size > 1 and not round_.entries[0].checkpoints:
        links.record(folder, round_, ranks)
    specs = [RunSpec.model_validate(entry.spec) for entry in round_.entries if not entry.checkpoints]
    peaks = gemm.peaks([spec.precision for spec in specs], ranks)
    start = Times(process_start_s=process_start_s, import_s=import_s, timing_s=time.perf_counter() - met)
    proofs, meter = Proofs(), Meter()
    for number, entry in enumerate(round_.entries):
        kind = Training if entry.spec.get("train") else Launch
        launch = kind(entry, number, round_, ranks, Path(os.environ["VITSCALE_DATA"]), peaks, proofs, meter)
        launch.serve(heartbeat, machine, start)
        start = Times()
    barrier()
    return len(round_.entries)


@contextlib.contextmanager
def _without_trackers() -> Iterator[None]:
    """timm imports W&B and DeepSpeed MLflow where they are installed: a fifth of a start-up, for nothing here."""
    modules: dict[str, Any] = sys.modules
    hidden = [name for name in _TRACKERS if name not in modules]
    modules |= dict.fromkeys(hidden)  # None: as if it were not installed
    try:
        yield
    finally:
        for name in hidden:
            del modules[name]


def _process_age_s() -> float:
    import psutil

    return time.time() - float(psutil.Process().create_time())


def _end_with_parent() -> None:
    """End this rank and its children when the parent is gone: its end of our standard input closes then."""
    while os.read(0, 1):
        pass
    _end()


def _end() -> None:
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _leave_failure(folder: Path, rank: int, error: BaseException, *, together: bool) -> None:
    text, hint = f"{type(error).__name__}: {error}", None
    if isinstance(error, VitscaleError):
        text, hint = error.message, error.hint
    text = reach.unreached(text) or text
    # A record names no home folder: the message may go through one.
    lines = [line.strip() for line in text.strip().splitlines()[:_LINES]]
    line = "; ".join(lines)[:500].replace(str(Path.home()), "~")
    # Before the ranks are together, what this machine lacks it lacks for every launch.
    kind = "setup" if isinstance(error, SetupError) and not together else _kind(error)
    failure_path(folder, rank).write_text(json.dumps({"kind": kind, "message": line, "hint": hint}) + "\n")


_LINES = 3  # a validation error names the key in its second line and the value in its third


def _kind(error: BaseException) -> str:
    from vitscale.errors import CheckpointError, DivergedError, MemoryExceeded

    told = str(error).lower()
    if isinstance(error, MemoryError | MemoryExceeded) or type(error).__name__ == "OutOfMemoryError":
        return "oom"
    if any(words in told for words in ("out of memory", "can't allocate memory", "cannot allocate memory")):
        return "oom"
    if isinstance(error, DivergedError):
        return "diverged"
    return "checkpoint" if isinstance(error, CheckpointError) else "exception"


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except BaseException:  # noqa: BLE001 (whatever it is, it is printed and ends this rank at once)
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    # Without the interpreter's shutdown: process groups and compile pools take seconds to unwind.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
