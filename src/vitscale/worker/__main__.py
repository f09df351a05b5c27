"""`python -m vitscale.worker rounds/<k>-w<N>/round.json`, one process per rank, in the results folder.

Serves the launches of the round in order and ends. What goes wrong is left in `failure.rank<r>.json` beside round.json;
the parent reads it, ends the other ranks and decides what comes next.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from vitscale.errors import SetupError
from vitscale.hardware.position import MPICH, OPEN_MPI, Position, position
from vitscale.records.round import Beat, Heartbeat, Round, failure_path

_MPIRUNS = (OPEN_MPI, MPICH)


def main(path: Path) -> None:
    """Serve one round."""
    faulthandler.register(signal.SIGQUIT, all_threads=True)
    round_, rank = Round.read(path), 0
    try:
        place = _place(round_)
        rank = place.rank
        if rank == 0 or place.starter not in _MPIRUNS:  # which hand their standard input to rank 0 alone
            threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
        heartbeat = Heartbeat(path.parent, rank)
        heartbeat.beat(Beat(0, "import", 0, 0, None))
        if cores := round_.cores_of(rank):
            os.sched_setaffinity(0, cores)  # before torch: its threads inherit it
        os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # else torch's profiler calls a host without GPUs an error
        os.environ.setdefault("TEARDOWN_CUPTI", "1")  # else it listens on, in the launches that follow
        number = _serve(round_, path.parent, heartbeat)
    except BaseException as error:
        _leave_failure(path.parent, rank, error)
        raise
    heartbeat.beat(Beat(number, "done", 0, 0, None))


def _place(round_: Round) -> Position:
    """Which rank this is; from here on the environment says it in torchrun's names.

    Raises:
        SetupError: nobody told, or not as many ranks were started as the round has.
    """
    place = position(os.environ)
    os.environ |= place.variables()
    if place.starter in _MPIRUNS:
        sys.stderr.write(f"rank {place.rank} is process {os.getpid()}\n")  # mpirun tells of processes
        sys.stderr.flush()
    if (place.world_size, place.local_world_size) != (round_.world_size, round_.ranks_per_node):
        raise SetupError(
            f"{place.starter} started {place.world_size} ranks, {place.local_world_size} on each host; "
            f"asked for were {round_.world_size}, {round_.ranks_per_node} on each host"
        )
    return place


def _serve(round_: Round, folder: Path, heartbeat: Heartbeat) -> int:
    import torch

    from vitscale.config.runspec import RunSpec
    from vitscale.hardware.probe import probe
    from vitscale.records.schema import Times
    from vitscale.worker import engines, gemm, links
    from vitscale.worker.devices import keep_freed_memory
    from vitscale.worker.distributed import barrier, connect, largest
    from vitscale.worker.measure import Launch
    from vitscale.worker.parity import Proofs
    from vitscale.worker.train import Training

    imported_s = _process_age_s()
    first = RunSpec.model_validate(round_.entries[0].spec)
    if first.threads_per_rank is not None:
        torch.set_num_threads(first.threads_per_rank)
        torch.set_num_interop_threads(1)
    if round_.device == "cpu":
        keep_freed_memory()
    ranks = connect(round_.device, first.torch_backend)
    for engine in {RunSpec.model_validate(entry.spec).engine for entry in round_.entries}:
        engines.prepare(engine, round_.device)
    machine = probe()
    import_s = largest(imported_s, ranks.device)
    process_start_s, met = _process_age_s(), time.perf_counter()
    if round_.world_size > 1 and not round_.entries[0].checkpoints:
        links.record(folder, round_, ranks)
    specs = [RunSpec.model_validate(entry.spec) for entry in round_.entries if not entry.checkpoints]
    peaks = gemm.peaks([spec.precision for spec in specs], ranks)
    start = Times(process_start_s=process_start_s, import_s=import_s, timing_s=time.perf_counter() - met)
    proofs = Proofs()
    for number, entry in enumerate(round_.entries):
        kind = Training if entry.spec.get("train") else Launch
        launch = kind(entry, number, round_, ranks, Path(os.environ["VITSCALE_DATA"]), peaks, proofs)
        launch.serve(heartbeat, machine, start)
        start = Times()
    barrier()
    return len(round_.entries)


def _process_age_s() -> float:
    import psutil

    return time.time() - float(psutil.Process().create_time())


def _end_with_parent() -> None:
    """End this rank and its children when the parent is gone: its end of our standard input closes then."""
    while os.read(0, 1):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _leave_failure(folder: Path, rank: int, error: BaseException) -> None:
    from vitscale.errors import VitscaleError

    text = error.message if isinstance(error, VitscaleError) else f"{type(error).__name__}: {error}"
    # A record names no home folder: the message may go through one.
    lines = [line.strip() for line in text.strip().splitlines()[:_LINES]]
    line = "; ".join(lines)[:500].replace(str(Path.home()), "~")
    document = {"kind": _kind(error), "message": line}
    failure_path(folder, rank).write_text(json.dumps(document) + "\n")


_LINES = 3  # a validation error names the key in its second line and the value in its third


def _kind(error: BaseException) -> str:
    from vitscale.errors import CheckpointError, DivergedError

    told = str(error).lower()
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
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
