"""What ssh is handed, and what is made of what agents say. The ssh here is a script, and no rank loads torch."""

import json
import shlex
import stat
import subprocess
import sys

import pytest

from vitscale.errors import SetupError
from vitscale.launch import hosts as module
from vitscale.launch.hostfile import Host
from vitscale.launch.hosts import Hosts, find_ssh
from vitscale.launch.inputs import Inputs
from vitscale.records.round import Entry, Round

PAIR = (Host("a", 1), Host("b", 1))
AGENT = """
import json, os, signal, sys, time
import vitscale.launch.agent as agent

host = sys.argv[-2]
agent.worker = lambda round_: [sys.executable, "-c", {rank!r}]
if host == "b":
    {b}
agent.Agent(0, 1).run()
"""
TELLS = "import json, os; json.dump(dict(os.environ), open(os.environ['RANK'] + '.json', 'w'))"
DIES = "import os, signal; os.environ['RANK'] == '1' and os.kill(os.getpid(), signal.SIGTERM); signal.pause()"


def round_of(nodes=2, name="0000-w2"):
    entry = Entry(folder="runs/a/launch0", run_id="a", launch=0, spec={"threads_per_rank": 3})
    return Round(
        name=name, world_size=nodes, nodes=nodes, ranks_per_node=1, device="cpu", cores=((0,), (1,)), entries=(entry,)
    )


@pytest.fixture
def launcher(tmp_path):
    """A launcher whose ssh starts an agent here, with another program in the place of a rank."""

    def make(rank=TELLS, b="pass", hosts=PAIR, **environ):
        path = tmp_path / "ssh"
        path.write_text(f"#!{sys.executable} -P\n{AGENT.format(rank=rank, b=b)}")
        path.chmod(stat.S_IRWXU)
        environ = {"PATH": "/usr/bin:/bin", **environ}
        return Hosts(str(path), hosts, Inputs(tmp_path / "data", environ=environ))

    return make


def serve(launcher, results, round_=None):
    return launcher.run(results, round_ or round_of(), lambda beat: None)


def test_ssh_gets_fixed_words_and_the_host_after_two_dashes(launcher):
    words = launcher().words(Host("node1", 4))
    assert words[-3:-1] == ["--", "node1"]
    assert "BatchMode=yes" in words
    assert launcher(WANDB_API_KEY="secret").words(Host("node1", 4)) == words


@pytest.mark.parametrize("folder", ["plain", "a b", "it's", 'a"b', "$(reboot)", "a;b|c&d", "*"])
def test_the_path_of_python_arrives_as_it_is_through_a_shell(launcher, tmp_path, monkeypatch, folder):
    python = tmp_path / folder / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$0" "$@"\n')
    python.chmod(stat.S_IRWXU)
    monkeypatch.setattr(sys, "executable", str(python))
    ran = subprocess.run(["sh", "-c", launcher().words(PAIR[0])[-1]], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == [str(python), "-P", "-m", "vitscale.launch.agent"]


def test_ranks_get_their_places_and_of_the_environment_what_ranks_need(launcher, tmp_path):
    given = {"WANDB_API_KEY": "secret", "RANK": "7", "NCCL_DEBUG": 'WARN "$(x)"', "GLOO_SOCKET_IFNAME": "eth7"}
    assert serve(launcher(HOME="/not/there", **given), tmp_path).status == "ok"
    for rank in (0, 1):
        told = json.loads((tmp_path / f"{rank}.json").read_text())
        assert {name: told[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")} == {
            "RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1",
        }  # fmt: skip
        assert (told["NCCL_DEBUG"], told["GLOO_SOCKET_IFNAME"]) == (given["NCCL_DEBUG"], "eth7")
        assert told["VITSCALE_DATA"] == str(tmp_path / "data")
        assert told["OMP_NUM_THREADS"] == "3"
        assert "WANDB_API_KEY" not in told
    assert json.loads((tmp_path / "rounds" / "0000-w2" / "round.json").read_text())["cores"] == []


def test_ranks_of_one_host_talk_over_its_loopback_interface(launcher, tmp_path):
    assert serve(launcher(GLOO_SOCKET_IFNAME="eth7"), tmp_path, round_of(1)).status == "ok"
    assert json.loads((tmp_path / "0.json").read_text())["GLOO_SOCKET_IFNAME"] == "lo"


def test_a_killed_rank_is_named_with_its_host(launcher, tmp_path):
    end = serve(launcher(rank=DIES), tmp_path)
    assert (end.status, end.reason) == ("failed", "rank 1 on host `b` was ended by SIGTERM before its first step")


def test_a_rank_that_the_kernel_of_another_host_ended_for_memory_is_an_outcome(launcher, tmp_path):
    kills = "count = iter((2, *[3] * 999)); agent.oom_kills = lambda: next(count)"
    end = serve(launcher(rank=DIES.replace("SIGTERM", "SIGKILL"), b=kills), tmp_path)
    why = "was ended by SIGKILL before its first step, by the kernel, for want of host memory"
    assert (end.status, end.reason) == ("oom", f"rank 1 on host `b` {why}")


def test_what_a_rank_printed_is_in_the_rounds_log_below_its_host(launcher, tmp_path):
    end = serve(launcher(rank="import sys; print('said'); sys.exit('what went wrong')"), tmp_path)
    assert end.reason == "rank 0 on host `a` ended with status 1; see rounds/0000-w2/stderr.log"
    log = (tmp_path / "rounds" / "0000-w2" / "stderr.log").read_text()
    assert log.index("--- host a\n") < log.index("what went wrong") < log.index("--- host b\n")
    assert "said\n" in log
    assert [path.name for path in (tmp_path / "rounds" / "0000-w2").glob("stderr*")] == ["stderr.log"]


REFUSES = "sys.exit('me@b: Permission denied (publickey).\\x1b[31m')"


def test_a_host_that_does_not_answer_is_named_and_no_user(launcher, tmp_path):
    with pytest.raises(SetupError) as caught:
        serve(launcher(b=REFUSES), tmp_path)
    assert caught.value.message == "host `b` did not answer: b: Permission denied (publickey).[31m"
    assert caught.value.hint.endswith(" -- b true` has to work, with this folder and this Python there too")
    assert not (tmp_path / "0.json").exists()


def test_all_hosts_that_do_not_answer_are_counted(launcher, tmp_path):
    many = tuple(Host(name, 1) for name in "abcdefgh")
    refuses = launcher(b="pass", hosts=many)
    script = tmp_path / "ssh"
    script.write_text(script.read_text().replace('if host == "b":', f'if host in "cdefgh":\n    {REFUSES}\nif 0:'))
    with pytest.raises(SetupError, match=r"^host `c` did not answer: .*; and 2 more hosts$"):
        serve(refuses, tmp_path, round_of(8, "0000-w8"))


def test_a_host_that_answered_before_costs_its_round_and_not_the_study(launcher, tmp_path):
    mark = tmp_path / "mark"
    hosts = launcher(b=f"os.path.exists({str(mark)!r}) and sys.exit('no route to host'); open({str(mark)!r}, 'x')")
    assert serve(hosts, tmp_path).status == "ok"
    end = serve(hosts, tmp_path, round_of(name="0001-w2"))
    assert (end.status, end.reason) == ("failed", "host `b` did not answer: no route to host")


def test_a_host_without_the_results_folder_is_named(launcher, tmp_path):
    away = "agent.Round.read = lambda path: (_ for _ in ()).throw(agent.ResultsError('not there'))"
    with pytest.raises(SetupError, match=r"^host `b` does not see the results folder$"):
        serve(launcher(b=away), tmp_path)


def test_a_host_that_falls_silent_is_named_and_the_other_ranks_end(launcher, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SILENCE_S", 1.6)
    end = serve(launcher(rank=DIES.replace("'1'", "'9'"), b="agent.Agent._report = lambda self: None"), tmp_path)
    assert (end.status, end.reason) == ("failed", "host `b` was not heard of for 2 s")


def test_an_agent_that_is_killed_is_named(launcher, tmp_path):
    dies = "agent.Agent._start = lambda self, work: os.kill(os.getpid(), 9)"
    end = serve(launcher(rank=DIES.replace("'1'", "'9'"), b=dies), tmp_path)
    assert (end.status, end.reason) == ("failed", "host `b` lost its agent")


def test_without_ssh_the_launcher_says_what_to_install(monkeypatch):
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    with pytest.raises(SetupError, match="needs `ssh`"):
        find_ssh()


def test_no_word_of_ssh_is_for_a_shell(launcher):
    *words, remote = launcher().words(PAIR[0])
    assert shlex.join(words) == " ".join(words)
    assert remote == f"exec {shlex.quote(sys.executable)} -P -m vitscale.launch.agent"
