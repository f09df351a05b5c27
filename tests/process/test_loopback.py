"""Ranks of one host listen on the loopback interface only, where nobody on the network can reach them; they know no
secret, and SIGTERM to their study ends them."""

import ipaddress
import time
from types import SimpleNamespace

import psutil
import pytest
from ranks import finish, launches, start, wait_until, worker_processes

from vitscale.records.round import read_heartbeats

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]


SECRETS = {"WANDB_API_KEY": "canary", "HF_TOKEN": "canary", "AWS_SECRET_ACCESS_KEY": "canary"}


@pytest.fixture(scope="module")
def ended(store, tmp_path_factory):
    """What two ranks in training have open and know, and the end of their study by SIGTERM."""
    results = tmp_path_factory.mktemp("loopback") / "results"
    words = ("world_size=2", "engine=ddp", "global_batch=8", "steps=4")
    process = start(store, results, *words, inject="hang rank=0 step=2", environ=SECRETS)
    folder = results / "rounds" / "0000-w2"

    def all_are_training():
        assert process.poll() is None, process.communicate()[1]
        return all(beat and beat.step == 3 for beat in read_heartbeats(folder, 1, 2))

    wait_until(all_are_training, 90, "two ranks in training")
    sockets = [
        one
        for rank in worker_processes(results)
        for one in [rank, *rank.children(recursive=True)]
        for one in one.net_connections(kind="inet")
    ]
    told = [value for rank in worker_processes(results) for value in rank.environ().values()]
    process.terminate()
    sent = time.monotonic()
    code, err = finish(process, timeout_s=30)
    took_s = time.monotonic() - sent
    return SimpleNamespace(**locals())


def test_ranks_listen_on_loopback_only_and_know_no_secret(ended):
    assert ended.told
    assert "canary" not in ended.told
    # gloo's pairs connect through them: none at all would mean that the wrong processes were looked at.
    assert ended.sockets
    ours = [one.laddr.ip for one in ended.sockets if one.status in (psutil.CONN_LISTEN, psutil.CONN_ESTABLISHED)]
    assert [address for address in ours if not ipaddress.ip_address(address).is_loopback] == []


def test_sigterm_ends_everything_and_says_how_to_go_on(ended):
    assert ended.took_s < 20
    assert ended.code == 75, ended.err
    assert "hint: the same command goes on with what is missing" in ended.err
    assert "Traceback" not in ended.err
    assert worker_processes(ended.results) == []
    assert [one["status"] for one in launches(ended.results).values()] == ["killed"]
