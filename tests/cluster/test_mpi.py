"""Studies whose ranks a real mpirun starts: measured as by others, ended as by others, and nothing left."""

import os

import pytest
from ranks import finish, launches, start, wait_until, worker_processes

from vitscale.records.round import read_heartbeat

pytestmark = [pytest.mark.process, pytest.mark.timeout(120), pytest.mark.usefixtures("mpirun")]

WORDS = ("world_size=2", "global_batch=8", "steps=4")
CANARY = {"WANDB_API_KEY": "canary", "HF_TOKEN": "canary", "SLURM_JWT": "canary", "RANK": "7", "WORLD_SIZE": "9"}


def by_mpirun(store, results, inject):
    return start(store, results, *WORDS, inject=inject, flags=("--launcher", "mpi"), environ=CANARY)


@pytest.fixture
def hanging(store, tmp_path):
    """A study in which rank 0 hangs after two steps, and its results folder, whose name a shell would not like."""
    results = tmp_path / 'it\'s $(a) "name"; #'
    process = by_mpirun(store, results, "hang rank=0 step=1")
    folder = results / "rounds" / "0000-w2"

    def both_have_trained():
        assert process.poll() is None, process.communicate()[1]
        return all((beat := read_heartbeat(folder, rank)) and beat[0].step == 2 for rank in (0, 1))

    wait_until(both_have_trained, 90, "two ranks in training")
    yield process, results
    process.kill()
    process.communicate()


def test_a_killed_rank_is_named_and_its_run_measured_at_the_next_attempt(store, tmp_path):
    code, err = finish(by_mpirun(store, tmp_path, f"kill rank=1 step=2 once={tmp_path}.mark"))
    assert code == 0, err
    first, second = launches(tmp_path).values()
    assert (first["status"], first["reason"]) == ("failed", "rank 1 was ended by SIGKILL")
    assert second["status"] == "ok"
    assert [(one["rank"], one["node"], one["local_rank"]) for one in second["devices"]] == [(0, 0, 0), (1, 0, 1)]
    cores = [core for one in second["devices"] for core in one["cores"]]
    assert len(cores) == len(set(cores)) >= min(2, len(os.sched_getaffinity(0)))
    assert worker_processes(tmp_path) == []


def test_the_end_of_the_tool_ends_mpirun_and_its_ranks_which_know_no_secret(hanging):
    process, results = hanging
    ranks = [one for one in worker_processes(results) if one.cmdline()[1] == "-P"]
    assert len(ranks) == 2
    for rank in ranks:
        told = rank.environ()
        assert not {*CANARY.items()} & {*told.items()}
        assert told["GLOO_SOCKET_IFNAME"] == "lo"
    process.kill()
    process.communicate()
    wait_until(lambda: not worker_processes(results), 15, "mpirun and its ranks are gone")
