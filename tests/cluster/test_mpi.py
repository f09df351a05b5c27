"""Studies whose ranks a real mpirun starts, on this host and on two: measured as by others, and nothing left."""

import os
import re
import stat

import pytest
from hosts import cut_off, unshared
from ranks import finish, launches, start, wait_until, worker_processes

from vitscale.launch.lab import NAMESPACES, network
from vitscale.records.round import read_heartbeats

pytestmark = [pytest.mark.process, pytest.mark.timeout(120), pytest.mark.usefixtures("mpirun")]

CANARY = {"WANDB_API_KEY": "canary", "HF_TOKEN": "canary", "SLURM_JWT": "canary", "RANK": "7", "WORLD_SIZE": "9"}
# In place of ssh: a host's name and a command, as mpirun hands them over, run in the host's network under its own name.
REMOTE_SHELL = """#!/bin/sh
[ "$1" != -x ] || shift  # as MPICH's mpirun calls ssh
host=$1; shift
into="nsenter --net={folder}/$host --mount=/proc/{pid}/ns/mnt"
exec unshare --uts sh -c 'hostname "$1" && exec $2 -- sh -c "$3"' sh "$host" "$into" "$*"
"""


def by_mpirun(store, results, *words, **more):
    words = ("world_size=2", "global_batch=8", "steps=4", *words)
    environ = {**CANARY, **more.pop("environ", {})}
    return start(store, results, *words, flags=("--launcher", "mpi"), environ=environ, **more)


def both_have_trained(process, results):
    assert process.poll() is None, process.communicate()[1]
    beats = read_heartbeats(results / "rounds" / "0000-w2", 2, 2)
    return all(beat and beat.step == 2 for beat in beats)


@pytest.fixture
def hosts(kernel, tmp_path):
    """Two hosts of one slot each: how to start something on the first, its environment, and the hostfile."""
    shell, hostfile = tmp_path / "shell", tmp_path / "hosts"
    with network(2, None) as names:
        addresses = ("10.0.0.1", "10.0.0.2")
        for name, address in zip(names, addresses, strict=True):
            (tmp_path / address).symlink_to(NAMESPACES / name)
        shell.write_text(REMOTE_SHELL.format(folder=tmp_path, pid=os.getpid()))
        shell.chmod(stat.S_IRWXU)
        hostfile.write_text("".join(f"{address} slots=1\n" for address in addresses))
        environ = {"OMPI_MCA_plm_rsh_agent": str(shell), "GLOO_SOCKET_IFNAME": "eth0"}
        yield ("nsenter", f"--net={NAMESPACES / names[0]}", "--"), environ, hostfile


@pytest.mark.timeout(240)
def test_a_rank_that_is_killed_on_another_host_is_named_and_its_run_measured_at_the_next_attempt(
    store, tmp_path, hosts
):
    prefix, environ, hostfile = hosts
    results = tmp_path / "results"
    fault = f"kill rank=1 step=2 launch=fp32 once={tmp_path}/mark; oom rank=1 step=1 launch=bf16"
    words = (f"launch.hostfile={hostfile}", "engine=ddp", "precision=bf16,fp32")
    code, err = finish(by_mpirun(store, results, *words, inject=fault, environ=environ, prefix=prefix), 200)
    assert code == 0, err
    (without,) = launches(results, "bf16").values()  # and the study goes on with its next run
    told = "rank 1 on host `10.0.0.2`: OutOfMemoryError: asked for by VITSCALE_INJECT"
    assert (without["status"], without["reason"]) == ("oom", told)
    first, second = launches(results, "fp32").values()
    killed = "rank 1 on host `10.0.0.2` was ended by SIGKILL after step 3 (steady)"
    assert (first["status"], first["reason"]) == ("failed", killed)
    assert second["status"] == "ok"
    assert (second["layout"]["nodes"], second["layout"]["ranks_per_node"]) == (2, 1)
    assert [(one["rank"], one["node"], one["local_rank"]) for one in second["devices"]] == [(0, 0, 0), (1, 1, 0)]
    assert worker_processes(results) == []


def test_a_host_that_does_not_answer_is_told_as_mpirun_tells_it_and_nothing_is_trained(store, tmp_path, hosts):
    prefix, environ, hostfile = hosts
    hostfile.write_text("10.0.0.1 slots=1\n10.0.0.9 slots=1\n")
    results = tmp_path / "results"
    words = (f"launch.hostfile={hostfile}", "engine=ddp")
    code, err = finish(by_mpirun(store, results, *words, environ=environ, prefix=prefix), 60)
    assert code in (3, 5), err
    assert "ORTE was unable to reliably start one or more daemons" in err
    assert not list(results.glob("runs/*/launch*/steps.*"))
    assert worker_processes(results) == []


def test_a_host_that_does_not_see_the_results_folder_is_named_and_nothing_is_trained(store, tmp_path, hosts):
    prefix, environ, hostfile = hosts
    results = tmp_path / "results"
    words = (f"launch.hostfile={hostfile}", "engine=ddp")
    process = by_mpirun(store, results, *words, environ=environ, prefix=(*unshared(results), *prefix))
    code, err = finish(process)
    assert code == 3, err
    assert "error: host `10.0.0.2` does not see the results folder\n\nhint: `--out` on a file system" in err
    assert worker_processes(results) == []


@pytest.mark.timeout(240)
def test_a_network_that_is_cut_ends_the_ranks_on_both_sides(store, tmp_path, hosts):
    prefix, environ, hostfile = hosts
    results = tmp_path / "results"
    words = (f"launch.hostfile={hostfile}", "engine=ddp")
    process = by_mpirun(store, results, *words, inject="hang rank=0 step=1", environ=environ, prefix=prefix)
    try:
        wait_until(lambda: both_have_trained(process, results), 90, "two ranks in training")
        ranks = worker_processes(results)
        cut_off(os.getpid(), 1)
        (first,) = wait_until(lambda: launches(results), 60, "the launch is closed").values()
        wait_until(lambda: not any(rank.is_running() for rank in ranks), 30, "its ranks are gone")
    finally:
        process.kill()
        process.communicate()
    assert first["status"] == "failed"
    assert re.search(r"host `10\.0\.0\.\d` (lost its connection to `mpirun`|has not answered)", first["reason"])
    wait_until(lambda: not worker_processes(results), 30, "nobody is left")


def test_the_end_of_the_tool_ends_mpirun_and_its_ranks_which_know_no_secret(store, tmp_path):
    results = tmp_path / 'it\'s $(a) "name"; #'  # which a shell would not leave as it is
    process = by_mpirun(store, results, "engine=ddp", inject="hang rank=0 step=1")
    try:
        wait_until(lambda: both_have_trained(process, results), 90, "two ranks in training")
        ranks = [one for one in worker_processes(results) if one.cmdline()[1] == "-P"]
        assert len(ranks) == 2
        for rank in ranks:
            told = rank.environ()
            assert not {*CANARY.items()} & {*told.items()}
            assert told["GLOO_SOCKET_IFNAME"] == "lo"
        cores = [core for rank in ranks for core in rank.cpu_affinity()]
        assert len(cores) == len(set(cores)) or len(os.sched_getaffinity(0)) < 2
    finally:
        process.kill()
        process.communicate()
    wait_until(lambda: not worker_processes(results), 15, "mpirun and its ranks are gone")
