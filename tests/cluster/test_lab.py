"""Several hosts on this machine: links at the rate asked for, ranks that know their host, and no trace left."""

import re
import signal
from pathlib import Path

import pytest
from hosts import RATES_BYTES_PER_S, cut_off, lab, timed_link
from ranks import finish, launches, steps, wait_until, worker_processes

from vitscale.launch.lab import NAMESPACES, network
from vitscale.records.round import read_heartbeats

pytestmark = [pytest.mark.process, pytest.mark.timeout(180), pytest.mark.usefixtures("kernel")]


def namespaces(process):
    """Those of a process's lab."""
    return [path.name for path in NAMESPACES.iterdir() if path.name.startswith(f"vitscale-{process.pid}-")]


@pytest.fixture
def hanging(store, tmp_path):
    """A lab in which rank 0 hangs after two steps, and its results folder."""
    results = tmp_path / "results"
    process = lab(store, results, "engine=ddp", "steps=4", inject="hang rank=0 step=1")
    folder = results / "rounds" / "0000-w2"

    def both_have_trained():
        assert process.poll() is None, process.communicate()[1]
        return all(beat and beat.step == 2 for beat in read_heartbeats(folder, 2, 2))

    wait_until(both_have_trained, 90, "two ranks in training")
    yield process, results
    process.kill()
    process.communicate()


@pytest.mark.alone
def test_a_study_on_two_hosts_runs_over_links_of_the_rate_asked_for(store, tmp_path):
    """Of 1 Gbit/s in `test_wire.py`."""
    # 0.5 MB: they take so long that the link's delay does not count, and not the whole time set aside.
    process = lab(store, tmp_path, "steps=2", "launch.link=100mbit", "embed_dim=48")
    code, err = finish(process, 100)
    assert code == 0, err
    (manifest,) = launches(tmp_path).values()
    assert (manifest["layout"]["nodes"], manifest["layout"]["ranks_per_node"]) == (2, 1)
    assert [(one["rank"], one["node"], one["local_rank"]) for one in manifest["devices"]] == [(0, 0, 0), (1, 1, 0)]
    cores = [core for one in manifest["devices"] for core in one["cores"]]
    assert len(cores) == len(set(cores))
    assert "ranks of 2 hosts listen on 2 ports, on `eth0`; whoever reaches them is trusted" in err
    found, best = timed_link(tmp_path, manifest)
    assert (found["nodes"], found["link"], found["left_out"]) == (2, "100mbit", 0)
    for operation in ("all_reduce", "broadcast"):
        assert best[operation] == pytest.approx(RATES_BYTES_PER_S["100mbit"], rel=0.1), operation
    assert [path.name for path in tmp_path.glob("runs/*/launch0/devices.*")] == ["devices.node000.jsonl"]
    assert namespaces(process) == []


def test_each_host_writes_one_file_with_the_steps_of_all_its_ranks(store, tmp_path):
    words = ("world_size=4", "engine=ddp", "steps=2")
    process = lab(store, tmp_path / "results", *words, environ={"TMPDIR": str(tmp_path)})
    code, err = finish(process, 110)
    assert code == 0, err
    (folder,) = (tmp_path / "results").glob("runs/*/launch0")
    assert [path.name for path in sorted(folder.glob("steps.*"))] == ["steps.node000.jsonl", "steps.node001.jsonl"]
    assert {rank: len(lines) for rank, lines in steps(folder).items()} == dict.fromkeys(range(4), 3)
    (manifest,) = launches(tmp_path / "results").values()
    parts = [manifest["times"][f"{name}_s"] for name in ("import", "timing", "setup", "data")]
    assert all(part > 0 for part in parts)
    assert manifest["times"]["import_s"] < manifest["times"]["process_start_s"]
    assert not [*tmp_path.glob("vitscale-*")]


def test_a_link_that_is_cut_ends_both_ranks_and_ctrl_c_leaves_no_namespace_and_no_rank(hanging):
    process, results = hanging
    assert len(namespaces(process)) == 3
    ranks = worker_processes(results)
    assert len(ranks) == 2
    cut_off(process.pid, 1)
    (first,) = wait_until(lambda: launches(results), 60, "the launch is closed").values()
    assert first["status"] == "failed"
    assert re.fullmatch(
        r"rank (0: host `10\.0\.0\.2`|1: host `10\.0\.0\.1`) has not answered for 28 s", first["reason"]
    )
    assert not any(rank.is_running() for rank in ranks)
    process.send_signal(signal.SIGINT)
    assert finish(process, 20)[0] == 75
    assert namespaces(process) == []
    assert worker_processes(results) == []


@pytest.mark.alone  # any lab takes it away
def test_what_a_killed_lab_leaves_the_next_takes_away(hanging):
    process, results = hanging
    process.kill()
    process.communicate()
    wait_until(lambda: not worker_processes(results), 10, "its ranks are gone")
    assert len(namespaces(process)) == 3
    with network(1, None):
        assert namespaces(process) == []


def test_the_machines_own_network_is_not_touched():
    def interfaces():
        return sorted(path.name for path in Path("/sys/class/net").iterdir())

    before = interfaces()
    with network(2, "100mbit"):
        assert interfaces() == before
