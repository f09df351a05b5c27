"""A study whose ranks MPICH's mpirun starts."""

import re

import pytest
from ranks import finish, launches, start, worker_processes

pytestmark = [pytest.mark.process, pytest.mark.timeout(150)]


def test_a_rank_that_mpich_started_and_that_is_killed_is_told_and_its_run_measured_at_the_next_attempt(
    store, tmp_path, mpich
):
    results = tmp_path / "results"
    words = ("world_size=2", "global_batch=8", "steps=4", "engine=ddp")
    fault = f"kill rank=1 step=2 once={tmp_path}/mark"
    process = start(store, results, *words, flags=("--launcher", "mpi"), inject=fault, environ=mpich)
    code, err = finish(process)
    assert code == 0, err
    first, second = launches(results).values()
    assert (first["status"], second["status"]) == ("failed", "ok")
    # Of two ranks that left no word hydra names the first one, which may be the one that it ended itself.
    assert re.match(r"rank [01] .*was ended by SIGKILL", first["reason"])
    assert "BAD TERMINATION" in (results / "rounds" / "0000-w2" / "stdout.log").read_text()  # hydra's words
    assert worker_processes(results) == []
