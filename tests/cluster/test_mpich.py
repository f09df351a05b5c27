"""Studies whose ranks MPICH's mpirun starts, on this host and on two."""

import re

import pytest
from ranks import finish, launches, start, worker_processes
from test_mpi import hosts  # noqa: F401 (a fixture)

pytestmark = [pytest.mark.process, pytest.mark.timeout(150)]


@pytest.fixture(params=["one host", "two hosts"])
def place(request, mpich):
    """Words before a command, its environment, and what it is told of hosts."""
    if request.param == "one host":
        return (), mpich, ()
    prefix, environ, hostfile = request.getfixturevalue("hosts")
    own = {"HYDRA_LAUNCHER_EXEC": environ["OMPI_MCA_plm_rsh_agent"], "HYDRA_IFACE": "eth0"}
    return prefix, {**environ, **own, **mpich}, (f"launch.hostfile={hostfile}",)


def test_a_rank_that_mpich_started_and_that_is_killed_is_told_and_its_run_measured_at_the_next_attempt(
    store, tmp_path, place
):
    prefix, environ, words = place
    results = tmp_path / "results"
    words = ("world_size=2", "global_batch=8", "steps=4", "engine=ddp", *words)
    fault = f"kill rank=1 step=2 once={tmp_path}/mark"
    process = start(store, results, *words, flags=("--launcher", "mpi"), inject=fault, environ=environ, prefix=prefix)
    code, err = finish(process)
    assert code == 0, err
    first, second = launches(results).values()
    assert (first["status"], second["status"]) == ("failed", "ok")
    # Of two ranks that left no word hydra names the first one, which may be the one that it ended itself.
    # Of two hosts it may end before it names any: then the other rank says whose connection closed.
    assert re.match(r"rank [01]\b.*(was ended by SIGKILL|\[10\.0\.0\.2\])", first["reason"])
    assert second["layout"]["nodes"] == (2 if prefix else 1)
    assert "BAD TERMINATION" in (results / "rounds" / "0000-w2" / "stdout.log").read_text()  # hydra's words
    assert worker_processes(results) == []
