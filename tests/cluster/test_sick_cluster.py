"""A cluster with a slow cable and another environment on one host: both are named, and nothing is measured on it."""

import json
import subprocess

import pytest
from ranks import runs

from vitscale.hardware.probe import probe
from vitscale.launch.inputs import Inputs
from vitscale.launch.lab import Lab
from vitscale.records.examination import DoctorReport
from vitscale.study.doctor import examine
from vitscale.study.grid import Where
from vitscale.study.rounds import make_round, next_entry

pytestmark = [pytest.mark.process, pytest.mark.timeout(200), pytest.mark.usefixtures("kernel")]

LAB = Where(probe(), lab=True)
SLOW = ("tbf", "rate", "25mbit", "burst", "8192", "latency", "100ms")


AHEAD = """
import time

now, now_ns = time.time, time.time_ns
time.time, time.time_ns = lambda: now() + 3600, lambda: now_ns() + 3600 * 10**9
"""


class Sick(Lab):
    """The last host has another timm, its clock is an hour ahead, and `cable` shapes its link."""

    other = None
    cable = False

    def command(self, folder, round_, rank):
        command = super().command(folder, round_, rank)
        if rank < round_.world_size - 1:
            return command
        if self.cable:
            for namespace, interface in ((self._hosts[-1], "eth0"), (self._switch(), f"port{round_.nodes - 1}")):
                shape = ["tc", "-n", namespace, "qdisc", "replace", "dev", interface, "root", *SLOW]
                subprocess.run(shape, check=True)
        return command._replace(environ={**command.environ, "PYTHONPATH": str(self.other)})

    def _switch(self):
        return self._hosts[0].rpartition("-")[0] + "-switch"


@pytest.fixture
def sick(store, tmp_path):
    facts = tmp_path / "other" / "timm-0.0.1.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: timm\nVersion: 0.0.1\n")
    (facts.parent / "sitecustomize.py").write_text(AHEAD)
    launcher = Sick(Inputs(store))
    launcher.other = facts.parent
    return launcher


def specs(store, hosts, link):
    words = (f"world_size={hosts}", f"nodes={hosts}", f"link={link}", "global_batch=12")
    return runs(store, *words, "model.name=vit_tiny_patch16_224", "depth=4", "embed_dim=96", where=LAB)


@pytest.mark.alone
def test_the_slow_host_of_three_its_other_versions_and_its_clock_are_named(store, tmp_path, sick):
    sick.cable = True
    results = tmp_path / "results"
    results.mkdir()
    found, error = examine(results, "sick", specs(store, 3, "100mbit"), probe(), sick, "lab")
    assert error.exit_code == 3
    assert DoctorReport.model_validate_json((results / "doctor.json").read_bytes()) == found
    failed = {check.name: check for check in found.checks if check.status == "failed"}
    assert set(failed) == {"versions", "links", "clocks"}
    assert (failed["clocks"].where, failed["clocks"].text) == (
        "host 2",
        "1 h 00 min ahead of host 0, more than SLURM and Kerberos take",
    )
    assert failed["versions"].text.endswith("on hosts 0, 1, 0.0.1 on host 2")
    assert failed["links"].where == "host 2"
    assert all(check.hint for check in failed.values())
    (slow,) = (check for check in found.checks if check.name == "all-reduce")
    assert (slow.status, slow.where) == ("warning", "all ranks")
    assert slow.text.endswith(" expected (link = 100mbit)")
    rates = {(one.a, one.b): one.bytes_per_s for one in found.together.pairs}
    assert set(rates) == {(0, 1), (0, 2), (1, 2)}
    assert max(rates[0, 2], rates[1, 2]) < 25e6 / 8 < rates[0, 1]


class Cut(Lab):
    """What the hosts send one another is lost on the way, and ranks wait less than a minute for it."""

    patience = None

    def command(self, folder, round_, rank):
        other = f"10.0.0.{2 - rank}"  # as a firewall would drop it: to an address that no card has
        lost = ("lladdr", "02:00:00:00:00:01", "nud", "permanent", "dev", "eth0")
        subprocess.run(["ip", "-n", self._hosts[rank], "neighbour", "replace", other, *lost], check=True)
        command = super().command(folder, round_, rank)
        return command._replace(environ={**command.environ, "PYTHONPATH": str(self.patience)})


@pytest.mark.alone  # both have to be there within seconds
def test_ranks_that_are_there_and_do_not_get_to_talk_end_with_each_hosts_interface(store, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("from vitscale.worker import meeting\nmeeting.MEET_S = 4.0\n")
    results = tmp_path / "results"
    results.mkdir()
    launcher = Cut(Inputs(store))
    launcher.patience = tmp_path
    (chosen, *_) = specs(store, 2, "1gbit")
    round_ = make_round(0, chosen, [next_entry(results, chosen)], probe())
    end = launcher.run(results, round_, lambda beat: None)
    assert end.status == "failed"
    assert end.reason.partition(": ")[2] == (
        "ranks did not talk within 4 s; reached are host 0 by `eth0`, host 1 by `eth0`"
    )
    assert "GLOO_SOCKET_IFNAME" in end.hint
    assert "firewall" in end.hint
    assert not (results / "runs").exists()


def test_a_study_is_not_measured_on_hosts_that_differ(store, tmp_path, sick):
    results = tmp_path / "results"
    results.mkdir()
    chosen = specs(store, 2, "1gbit")
    round_ = make_round(0, chosen[0], [next_entry(results, chosen[0])], probe())
    end = sick.run(results, round_, lambda beat: None)
    assert (end.status, end.kind) == ("failed", "setup")
    assert "hosts differ: timm" in end.reason
    assert end.reason.endswith("0.0.1 on host 1")
    assert end.hint == "one environment for all hosts, or the same versions in each"
    assert not (results / "runs").exists()
    told = [json.loads(path.read_text())["message"] for path in results.glob("rounds/*/failure.*")]
    assert len(told) == 2
    assert len(set(told)) == 1
