"""Hostfiles in DeepSpeed's format, and what DeepSpeed would take for one."""

import pytest

from vitscale.errors import SetupError, UsageError
from vitscale.launch.hostfile import Host, chosen, read_hostfile


def read(tmp_path, text):
    path = tmp_path / "hosts"
    path.write_bytes(text.encode())
    return read_hostfile(path)


def test_hosts_come_in_order_without_comments(tmp_path):
    text = "# two of them\n\nnode-2.example.org  slots=4\r\n\t10.0.0.7 slots=16\n  # the end"
    assert read(tmp_path, text) == (Host("node-2.example.org", 4), Host("10.0.0.7", 16))


@pytest.mark.parametrize(
    "line",
    [
        "a", "a slots=", "a slots=0", "a slots=4junk", "a slots=-1", "a slots=1 slots=2", "a slots=999999", "slots=4",
        "a slots=4 # many", "-oProxyCommand=reboot slots=4", "--help slots=1", "a;reboot slots=1", "$(reboot) slots=1",
        "`reboot` slots=1", "a,b slots=1", "a:9 slots=1", "root@a slots=1", "'a' slots=1", '"a" slots=1',
        "a\x00 slots=1", "a\\ b slots=1", "..\u2028a slots=1", "\u00e4 slots=1", "a- slots=1", ".a slots=1",
        "::1 slots=1", "a" * 64 + " slots=1",
    ],
)  # fmt: skip
def test_a_line_that_is_no_host_is_refused_with_its_number(tmp_path, line):
    with pytest.raises(UsageError) as refused:
        read(tmp_path, f"good slots=1\n# one more\n{line}\n")
    assert refused.value.message.startswith("line 3 of the hostfile is not a host: ")
    assert refused.value.message.isprintable()
    assert refused.value.hint == "one host a line: `name slots=4`"


def test_a_host_named_twice_is_refused(tmp_path):
    with pytest.raises(UsageError, match="line 2 of the hostfile names `Node1` again"):
        read(tmp_path, "node1 slots=4\nNode1 slots=4\n")


@pytest.mark.parametrize(("text", "message"), [("", "names no host"), ("# none\n", "names no host")])
def test_without_a_host_nothing_is_started_here_instead(tmp_path, text, message):
    with pytest.raises(SetupError, match=message):
        read(tmp_path, text)


def test_a_missing_hostfile_is_no_reason_to_train_on_this_host(tmp_path):
    with pytest.raises(SetupError, match="No such file or directory") as refused:
        read_hostfile(tmp_path / "hosts")
    assert refused.value.exit_code == 3


def test_the_first_hosts_with_room_are_chosen():
    hosts = (Host("a", 2), Host("b", 4), Host("c", 4))
    assert [host.name for host in chosen(hosts, 2, 2)] == ["a", "b"]
    assert [host.name for host in chosen(hosts, 2, 3)] == ["b", "c"]
    assert chosen(hosts, 3, 3) is None
    assert chosen(hosts, 4, 1) is None
