"""The network of a lab: what is asked of the kernel, and that all of it is taken back."""

import os
import signal

import pytest

from vitscale.errors import SetupError
from vitscale.launch import lab
from vitscale.launch.inputs import Inputs
from vitscale.launch.lab import Lab, network, remove_leftovers, require_namespaces
from vitscale.launch.outcome import RoundEnd
from vitscale.records.round import Round

OWN = f"vitscale-{os.getpid()}"


@pytest.fixture
def kernel(monkeypatch, tmp_path):
    """A kernel that does as it is told and refuses commands with one word; namespaces are files."""

    class Kernel:
        def __init__(self):
            self.refused, self.said = "", []

        def __call__(self, *command):
            self.said.append(command)
            if self.refused and self.refused in command:
                raise SetupError("refused")
            if command[1:3] == ("netns", "add"):
                (tmp_path / command[3]).touch(exist_ok=False)
            if command[1:3] == ("netns", "delete"):
                (tmp_path / command[3]).unlink()

        def there(self):
            return sorted(path.name for path in tmp_path.iterdir())

    made = Kernel()
    monkeypatch.setattr(lab, "_run", made)
    monkeypatch.setattr(lab, "NAMESPACES", tmp_path)
    return made


def round_(nodes, ranks_per_node=1, link=None):
    return Round(
        name="0000-w2", world_size=nodes * ranks_per_node, nodes=nodes, ranks_per_node=ranks_per_node, device="cpu",
        cores=(), link=link, entries=(),
    )  # fmt: skip


def test_hosts_are_there_while_they_are_used_and_gone_afterwards(kernel):
    with network(2, None) as names:
        assert names == [f"{OWN}-host0", f"{OWN}-host1"]
        assert kernel.there() == [*names, f"{OWN}-switch"]
    assert kernel.there() == []


def test_both_ends_of_every_link_are_shaped_before_they_are_up(kernel):
    with network(3, "100mbit") as names:
        pass
    shaped = [(one[2], one[6]) for one in kernel.said if one[0] == "tc"]
    assert shaped == [
        end for number, name in enumerate(names) for end in ((name, "eth0"), (f"{OWN}-switch", f"port{number}"))
    ]
    for namespace, interface in shaped:
        up = kernel.said.index(("ip", "-n", namespace, "link", "set", interface, "up"))
        assert [one[6] for one in kernel.said[:up] if one[0] == "tc" and one[2] == namespace][-1] == interface


@pytest.mark.parametrize(("rate", "bucket_bytes"), [("1mbit", 8192), ("100mbit", 8192), ("1gbit", 81250)])
def test_a_bucket_is_small_but_deeper_than_a_timer_is_late(kernel, rate, bucket_bytes):
    with network(1, rate):
        pass
    assert {one[one.index("burst") + 1] for one in kernel.said if one[0] == "tc"} == {str(bucket_bytes)}


def test_a_link_without_a_rate_is_not_shaped(kernel):
    with network(2, None):
        pass
    assert [one for one in kernel.said if one[0] == "tc"] == []


@pytest.mark.parametrize("word", ["bridge", "veth", "tbf"])
def test_a_kernel_that_refuses_leaves_nothing(kernel, word):
    kernel.refused = word
    with pytest.raises(SetupError), network(2, "1gbit"):
        pytest.fail("there is no such network")
    assert kernel.there() == []


def test_what_a_killed_process_left_is_removed_and_nothing_else(kernel, tmp_path):
    dead = 2**22 + 1  # above the largest process id of Linux
    others = ["someone", f"vitscale-{os.getppid()}-host0", f"vitscale-{dead}", f"vitscale-{dead}-host0x"]
    for name in (*others, f"vitscale-{dead}-host0", f"vitscale-{dead}-switch", f"{OWN}-host0"):
        (tmp_path / name).touch()
    remove_leftovers()
    assert kernel.there() == sorted(others)


def test_ranks_of_a_host_start_in_its_namespace_and_use_its_interface(kernel, monkeypatch, tmp_path):
    seen = []

    def run(self, results, round_, watch):
        seen.append((round_, self.place(0), self.place(round_.nodes - 1)))
        return RoundEnd("ok")

    monkeypatch.setattr(lab.Local, "run", run)
    launcher = Lab(Inputs(tmp_path, environ={}))
    launcher.run(tmp_path, round_(2), lambda beat: None)
    launcher.run(tmp_path, round_(1, 2), lambda beat: None)
    (apart, first, last), (together, alone, _) = seen
    assert (first.interface, last.interface) == ("eth0", "eth0")
    assert [place.prefix[1] for place in (first, last)] == [f"--net={tmp_path}/{OWN}-host{node}" for node in (0, 1)]
    assert alone == ((), "lo")
    assert (apart.one_machine, together.one_machine) == (True, False)


def test_who_is_not_root_and_what_is_not_installed_is_told(monkeypatch):
    monkeypatch.setattr(lab.os, "geteuid", lambda: 1000)
    with pytest.raises(SetupError, match="only root"):
        require_namespaces()
    monkeypatch.setattr(lab.os, "geteuid", lambda: 0)
    monkeypatch.setattr(lab.shutil, "which", lambda name: None if name == "tc" else f"/bin/{name}")
    with pytest.raises(SetupError, match="`tc`") as caught:
        require_namespaces()
    assert "iproute2" in caught.value.hint


def test_what_the_kernel_says_is_shown(monkeypatch):
    with pytest.raises(SetupError, match="no such file"):
        lab._run("sh", "-c", "echo 'no such file' >&2; exit 3")


def test_ctrl_c_while_a_network_is_taken_back_leaves_nothing_of_it(kernel, monkeypatch):
    def interrupted(*command):
        if command[1:3] == ("netns", "delete"):
            os.kill(os.getpid(), signal.SIGINT)
        kernel(*command)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), network(2, None):
            monkeypatch.setattr(lab, "_run", interrupted)
    finally:
        signal.signal(signal.SIGINT, before)
    assert kernel.there() == []
