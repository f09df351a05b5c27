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

from vitscale.records.round import Beat, Heartbeat, Round, failure_path


def main(path: Path) -> None:
    """Serve one round."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    round_ = Round.read(path)
    heartbeat = Heartbeat(path.parent, int(os.environ["RANK"]))
    heartbeat.beat(Beat(0, "import", 0, 0, None))
    local_rank = int(os.environ["LOCAL_RANK"])
    if round_.cores:
        os.sched_setaffinity(0, round_.cores[local_rank])  # before torch: its threads inherit it
    number = 0
    try:
        number = _serve(round_, heartbeat)
    except BaseException as error:
        _leave_failure(path.parent, error)
        raise
    heartbeat.beat(Beat(number, "done", 0, 0, None))


def _serve(round_: Round, heartbeat: Heartbeat) -> int:
    import torch

    from vitscale.config.runspec import RunSpec
    from vitscale.hardware.probe import probe
    from vitscale.worker import engines
    from vitscale.worker.distributed import barrier, connect
    from vitscale.worker.measure import Launch

    first = RunSpec.model_validate(round_.entries[0].spec)
    if first.threads_per_rank is not None:
        torch.set_num_threads(first.threads_per_rank)
        torch.set_num_interop_threads(1)
    ranks = connect(round_.device)
    for engine in {RunSpec.model_validate(entry.spec).engine for entry in round_.entries}:
        engines.prepare(engine, round_.device)
    machine = probe()
    barrier()
    process_start_s: float | None = _process_age_s()
    for number, entry in enumerate(round_.entries):
        launch = Launch(entry, number, round_, ranks, Path(os.environ["VITSCALE_DATA"]))
        launch.measure(heartbeat, machine, process_start_s)
        process_start_s = None
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


def _leave_failure(folder: Path, error: BaseException) -> None:
    from vitscale.errors import DivergedError

    text = f"{type(error).__name__}: {error}".strip().splitlines()[0][:500]
    lowered = str(error).lower()
    told = "out of memory" in lowered or "can't allocate memory" in lowered
    if told or isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        kind = "oom"
    else:
        kind = "diverged" if isinstance(error, DivergedError) else "exception"
    document = {"kind": kind, "message": str(error) if isinstance(error, DivergedError) else text}
    failure_path(folder, int(os.environ["RANK"])).write_text(json.dumps(document) + "\n")


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
