"""Studies on two hosts that a real sshd each lets in: measured as elsewhere, ends named, and nothing left."""

import time

import psutil
import pytest
from ranks import finish, launches, start, wait_until, worker_processes
from ssh_cluster import ssh_hosts

from vitscale.records.round import read_heartbeats

pytestmark = [pytest.mark.process, pytest.mark.timeout(240), pytest.mark.usefixtures("kernel", "sshd")]

CANARY = {"WANDB_API_KEY": "canary", "HF_TOKEN": "canary", "RANK": "7", "WORLD_SIZE": "9"}


@pytest.fixture
def cluster(tmp_path):
    with ssh_hosts(tmp_path / "ssh") as hosts:
        yield hosts


def run(hosts, store, results, *words, inject=""):
    """`vitscale run quick --launcher hosts`, small; faults reach the ranks as the rest of VITSCALE_… does."""
    words = ("world_size=2", "nodes=2", "global_batch=8", "steps=4", "engine=ddp", *words)
    words = (*words, f"launch.hostfile={hosts.hostfile}")
    environ, flags = {**CANARY, **hosts.environ}, ("--launcher", "hosts")
    return start(store, results, *words, flags=flags, inject=inject, prefix=hosts.prefix, environ=environ)


def agents(hosts):
    """Agents of the launcher on these hosts, and the ssh that reach them; other tests have theirs."""
    return [
        one
        for one in psutil.process_iter(["cmdline"])
        if "vitscale.launch.agent" in " ".join(one.info["cmdline"] or ()) and hosts.has(one.pid)
    ]


def in_training(process, results):
    """Wait until both ranks have taken a step, and return them."""
    folder = results / "rounds" / "0000-w2"

    def both():
        assert process.poll() is None, process.communicate()[1]
        return all(beat and beat.step == 2 for beat in read_heartbeats(folder, 2, 2))

    wait_until(both, 90, "two ranks in training")
    return worker_processes(results)


def test_a_rank_that_is_killed_is_named_with_its_host_and_its_run_measured_at_the_next_attempt(
    store, tmp_path, cluster
):
    results = tmp_path / 'it\'s $(a) "name"; #'  # which a shell would not leave as it is
    process = run(cluster, store, results, inject=f"kill rank=1 step=2 once={tmp_path}/mark")
    code, err = finish(process)
    assert code == 0, err
    first, second = launches(results).values()
    killed = "rank 1 on host `10.0.0.2` was ended by SIGKILL after step 3 (steady)"
    assert (first["status"], first["reason"]) == ("failed", killed)
    assert second["status"] == "ok"
    assert (second["layout"]["nodes"], second["layout"]["ranks_per_node"]) == (2, 1)
    assert [(one["rank"], one["node"], one["local_rank"]) for one in second["devices"]] == [(0, 0, 0), (1, 1, 0)]
    assert (results / "report" / "index.html").exists()
    assert worker_processes(results) == agents(cluster) == []


@pytest.mark.alone
def test_a_host_that_the_network_loses_is_named_and_both_sides_end_within_half_a_minute(store, tmp_path, cluster):
    results = tmp_path / "results"
    process = run(cluster, store, results, inject=f"hang rank=0 step=1 once={tmp_path}/mark")
    ranks = in_training(process, results)
    assert {rank.environ()["GLOO_SOCKET_IFNAME"] for rank in ranks} == {"eth0"}
    assert not any({*CANARY.items()} & {*rank.environ().items()} for rank in ranks)
    cluster.link(1, "down")
    cut = time.monotonic()
    wait_until(lambda: not any(rank.is_running() for rank in ranks), 30, "the ranks are gone")
    (first,) = wait_until(lambda: launches(results), 30 - (time.monotonic() - cut), "the launch is closed").values()
    cluster.link(1, "up")
    assert first["status"] == "failed"
    assert first["reason"].startswith("host `10.0.0.2` was not heard of for 1")
    code, err = finish(process)
    assert code == 0, err  # at the next attempt


def test_the_end_of_the_tool_ends_the_ranks_on_every_host(store, tmp_path, cluster):
    process = run(cluster, store, tmp_path / "results", inject="hang rank=0 step=1")
    in_training(process, tmp_path / "results")
    assert agents(cluster)
    process.kill()
    process.communicate()
    wait_until(lambda: not (worker_processes(tmp_path / "results") or agents(cluster)), 10, "ranks and agents are gone")


def test_hosts_that_do_not_answer_are_named_before_anything_is_trained(store, tmp_path, cluster):
    cluster.hostfile.write_text("".join(f"10.0.0.{number} slots=1\n" for number in (1, 2, 3, 4)))
    code, err = finish(run(cluster, store, tmp_path / "results", "world_size=4", "nodes=4"))
    assert code == 3
    for address in ("10.0.0.3", "10.0.0.4"):
        assert f"host `{address}` did not answer: ssh: connect to host {address} port 2222: " in err
    assert "10.0.0.1" not in err
    assert not list(tmp_path.rglob("manifest.json"))
    assert agents(cluster) == []
