"""What is handed to mpirun, and what is made of what it says. The mpirun here is a script that starts no rank."""

import json
import os
import signal
import stat
import sys
from pathlib import Path

import pytest

from vitscale.errors import SetupError
from vitscale.launch.hostfile import Host
from vitscale.launch.inputs import Inputs
from vitscale.launch.mpi import Mpi, Mpirun, RanksOfMpirun, find_mpirun
from vitscale.launch.outcome import RoundEnd
from vitscale.launch.processes import Command
from vitscale.records.round import Entry, Round

HOSTILE = "a b 'c' \"d\" $(reboot) `reboot` ;|&\n-x --"
OPEN_MPI = "mpirun (Open MPI) 4.1.4\n\nReport bugs to http://www.open-mpi.org/community/help/"
MPICH = "HYDRA build details:\n    Version:                                 4.0.2"
# As each prints it, recorded; the second of two ranks was killed.
KILLED = {
    "openmpi": """
--------------------------------------------------------------------------
Primary job  terminated normally, but 1 process returned
a non-zero exit code. Per user-direction, the job has been aborted.
--------------------------------------------------------------------------
--------------------------------------------------------------------------
mpirun noticed that process rank 1 with PID 0 on node vm exited on signal 9 (Killed).
--------------------------------------------------------------------------
""",
    "hydra": """rank 1 is process 11461, after 3 OOM kills
rank 0 is process 11460, after 9 OOM kills

===================================================================================
=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES
=   PID 11461 RUNNING AT localhost
=   EXIT CODE: 9
=   CLEANING UP REMAINING PROCESSES
=   YOU CAN IGNORE THE BELOW CLEANUP MESSAGES
===================================================================================
YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Killed (signal 9)
This typically refers to a problem with your application.
Please see the FAQ page for debugging suggestions
""",
}
LOST = """
--------------------------------------------------------------------------
ORTE has lost communication with a remote daemon.

  HNP daemon   : [[23570,0],0] on node vm
  Remote daemon: [[23570,0],1] on node 10.0.0.2

This is usually due to either a failure of the TCP network
connection to the node, or possibly an internal failure of
the daemon itself. We cannot recover from this failure, and
therefore will terminate the job.
--------------------------------------------------------------------------
"""
EARLY = "before its first step"
NO_SUCH_HOST = """
--------------------------------------------------------------------------
ORTE was unable to reliably start one or more daemons.
This usually is caused by:

* not finding the required libraries
--------------------------------------------------------------------------
"""


def round_of(world_size, nodes=1):
    spec = {"threads_per_rank": 2}
    return Round(
        name=f"0000-w{world_size}",
        world_size=world_size,
        nodes=nodes,
        ranks_per_node=world_size // nodes,
        device="cpu",
        cores=((0,), (1,)),
        entries=(Entry(folder="runs/a/launch0", run_id="a", launch=0, spec=spec),),
    )


@pytest.fixture
def script(tmp_path):
    """Make an executable Python script called `mpirun`."""

    def write(text):
        path = tmp_path / "bin" / "mpirun"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!{sys.executable}\nimport json, os, signal, sys, time\n{text}\n")
        path.chmod(stat.S_IRWXU)
        return str(path)

    return write


def launcher(path, tmp_path, hosts=(), kind="openmpi", environ=None):
    environ = os.environ if environ is None else environ
    return Mpi(Mpirun(path, kind), hosts, Inputs(tmp_path / "data", environ=environ))


@pytest.fixture
def served(script, tmp_path):
    """Let an mpirun that does as its text says serve a round; the round's end."""

    def serve(text, round_=None, watch=lambda beat: None, **more):
        results = tmp_path / "results"
        results.mkdir()
        return launcher(script(text), tmp_path, **more).run(results, round_ or round_of(2), watch)

    return serve


WORKER = [sys.executable, "-P", "-m", "vitscale.worker"]


def test_open_mpi_is_asked_for_ranks_host_by_host_that_bind_themselves(tmp_path, monkeypatch):
    monkeypatch.setattr("vitscale.launch.mpi.os.geteuid", lambda: 1000)
    words, environ = launcher("/usr/bin/mpirun", tmp_path, environ={}).command(tmp_path, round_of(2))
    assert words == [
        "/usr/bin/mpirun", "-np", "2", "--host", "localhost:2", "--map-by", "ppr:2:node", "--rank-by", "slot",
        "--bind-to", "none", *WORKER, "rounds/0000-w2/round.json",
    ]  # fmt: skip
    assert environ["GLOO_SOCKET_IFNAME"] == "lo"
    assert environ["OMP_NUM_THREADS"] == "2"
    monkeypatch.setattr("vitscale.launch.mpi.os.geteuid", lambda: 0)
    assert "--allow-run-as-root" in launcher("mpirun", tmp_path, environ={}).command(tmp_path, round_of(2)).words


def test_other_hosts_get_the_names_of_variables_and_no_value_stands_in_the_command(tmp_path):
    hosts = (Host("a", 1), Host("10.0.0.2", 2), Host("c", 2), Host("d", 2))
    given = {
        "NCCL_DEBUG": HOSTILE,
        "OMPI_MCA_btl": "tcp",
        "SLURM_JOB_ID": "7",
        "HOME": "/home/me",
        "BASH_FUNC_x%%": "1",
    }
    for kind, start, export in (
        ("openmpi", ["-np", "4", "--host", "10.0.0.2:2,c:2"], ["-x", "NCCL_DEBUG"]),
        ("hydra", ["-n", "4", "-ppn", "2", "-hosts", "10.0.0.2,c", "-bind-to", "none"], ["-genvlist"]),
    ):
        words, environ = launcher("mpirun", tmp_path, hosts, kind, given).command(tmp_path, round_of(4, nodes=2))
        assert words[1 : len(start) + 1] == start
        assert words[-5:] == [*WORKER, "rounds/0000-w4/round.json"]
        assert any(words[at : at + len(export)] == export for at in range(len(words)))
        exported = {name for word in words for name in word.split(",")}
        assert {"NCCL_DEBUG", "VITSCALE_DATA", "VITSCALE_STORE", "OMP_NUM_THREADS"} <= exported
        assert not {"HOME", "OMPI_MCA_btl", "SLURM_JOB_ID", HOSTILE} & exported
        assert "GLOO_SOCKET_IFNAME" not in environ  # it is loopback on one host only


def test_the_environment_is_an_allow_list(tmp_path):
    secret = (
        "HF_TOKEN",
        "WANDB_API_KEY",
        "MLFLOW_TRACKING_PASSWORD",
        "AWS_SECRET_ACCESS_KEY",
        "SLURM_JWT",
        "RANK",
        "FOO",
    )
    needed = (
        "PATH",
        "LD_LIBRARY_PATH",
        "NCCL_SOCKET_IFNAME",
        "CUDA_VISIBLE_DEVICES",
        "SLURM_JOB_ID",
        "OMPI_MCA_btl",
        "PYTORCH_CUDA_ALLOC_CONF",
        "LD_PRELOAD",
    )
    given = dict.fromkeys((*secret, *needed), HOSTILE)
    environ = launcher("mpirun", tmp_path, environ=given).command(tmp_path, round_of(2)).environ
    assert {name for name in given if name in environ} == {*needed}


def test_hostile_names_arrive_as_they_are_and_are_read_by_no_shell(script, tmp_path):
    results = tmp_path / HOSTILE
    results.mkdir()
    path = script("print(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)])); sys.exit(3)")
    runner = launcher(path, tmp_path / HOSTILE, environ={**os.environ, "NCCL_DEBUG": HOSTILE})
    end = runner.run(results, round_of(2), lambda beat: None)
    assert end.status == "failed"
    told = Path(results / "rounds" / "0000-w2" / "stdout.log").read_text()
    words, folder, environ = json.loads(told.splitlines()[0])
    assert words == [*runner.command(results, round_of(2)).words[1:]]
    assert folder == str(results)
    assert environ["VITSCALE_DATA"] == str(results / "data")
    assert environ["NCCL_DEBUG"] == HOSTILE


@pytest.mark.parametrize("kind", ["openmpi", "hydra"])
def test_a_killed_rank_is_named_from_what_mpirun_says(served, kind):
    end = served(f"sys.stderr.write({KILLED[kind]!r}); sys.exit(137)", kind=kind)
    assert end == RoundEnd("failed", "rank 1 was ended by SIGKILL before its first step")


@pytest.mark.parametrize(("kind", "host"), [("openmpi", "vm"), ("hydra", "localhost")])
def test_of_several_hosts_that_of_a_killed_rank_is_named_and_the_step(served, tmp_path, kind, host):
    folder = str(tmp_path / "results" / "rounds" / "0000-w2")
    beats = f"""
sys.path[:0] = {sys.path!r}
from pathlib import Path
from vitscale.records.round import Beat, Heartbeat
Heartbeat(Path({folder!r}), 1, 1).beat(Beat(0, "steady", 3, 9, None))"""
    end = served(f"{beats}\nsys.stderr.write({KILLED[kind]!r}); sys.exit(137)", round_of(2, nodes=2), kind=kind)
    assert end.reason == f"rank 1 on host `{host}` was ended by SIGKILL after step 3 (steady)"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (9, "rank 1 on host `10.0.0.2` was ended by SIGKILL before its first step"),
        (139, "rank 1 on host `10.0.0.2` was ended by SIGSEGV before its first step"),
        (255, "`mpirun` ended with status 137"),
        (1, "`mpirun` ended with status 137"),
    ],
)
def test_of_a_process_on_another_host_hydra_tells_the_signal_as_an_exit_code(served, code, reason):
    told = KILLED["hydra"].partition("YOUR APPLICATION TERMINATED")[0]  # as recorded on two hosts
    told = told.replace("localhost", "10.0.0.2").replace("CODE: 9", f"CODE: {code}")
    end = served(f"sys.stderr.write({told!r}); sys.exit(137)", round_of(2, nodes=2), kind="hydra")
    assert end.reason.startswith(reason)


A_AND_B = (Host("a", 1), Host("b", 1))


@pytest.mark.parametrize(("now", "status"), [("oom_kill 4", "oom"), ("oom_kill 3", "failed"), ("", "failed")])
@pytest.mark.parametrize(("kind", "host", "asked"), [("openmpi", "vm", "b:1"), ("hydra", "localhost", "b")])
def test_what_the_kernel_of_another_host_ended_for_memory_is_asked_for_there(
    served, tmp_path, kind, host, asked, now, status
):
    begun = "rank 0 is process 11460, after 9 OOM kills\nrank 1 is process 11461, after 3 OOM kills\n"
    told, words = begun + KILLED[kind], tmp_path / "words"
    text = f"""
if sys.argv[-2:] == ["cat", "/proc/vmstat"]:
    open({str(words)!r}, "w").write(" ".join(sys.argv))
    print("pgfault 7"); print({now!r}); sys.exit(0)
sys.stderr.write({told!r}); sys.exit(137)"""
    end = served(text, round_of(2, nodes=2), hosts=A_AND_B, kind=kind)
    why = ", by the kernel, for want of host memory" if status == "oom" else ""
    assert end == RoundEnd(status, f"rank 1 on host `{host}` was ended by SIGKILL {EARLY}{why}")
    assert f" {asked} " in words.read_text()


def test_what_a_host_lacks_is_told_and_not_the_rank_that_mpirun_then_ended(served):
    word = json.dumps({"kind": "setup", "message": "no tcmalloc here", "hint": None})
    left = f"open('rounds/0000-w2/failure.rank000.json', 'w').write({word!r})"
    told = f"{left}; sys.stderr.write({KILLED['openmpi']!r}); sys.exit(137)"
    end = served(told, round_of(2, nodes=2), hosts=A_AND_B)
    assert (end.kind, end.reason) == ("setup", "rank 0: no tcmalloc here")


def test_a_rank_that_has_no_memory_is_named_with_its_host(served):
    word = json.dumps({"kind": "oom", "message": "OutOfMemoryError: no"})
    left = f"open('rounds/0000-w2/failure.rank001.json', 'w').write({word!r})"
    end = served(f"{left}; sys.exit(1)", round_of(2, nodes=2), hosts=A_AND_B)
    assert end == RoundEnd("oom", "rank 1 on host `b`: OutOfMemoryError: no", "oom")


def test_a_host_that_does_not_see_the_results_folder_ends_the_study_with_what_to_do(served):
    told = "host b does not see the results folder\nTraceback …\nhost b does not see the results folder\n"
    end = served(f"sys.stderr.write({told!r}); sys.exit(1)", round_of(4, nodes=2))
    assert end[:3] == ("failed", "host `b` does not see the results folder", "setup")
    assert "`--out`" in end.hint


def test_a_host_that_mpirun_has_lost_is_named(served):
    end = served(f"sys.stderr.write({LOST!r}); sys.exit(1)", round_of(2, nodes=2))
    assert end == RoundEnd("failed", "host `10.0.0.2` lost its connection to `mpirun`")


def test_an_mpirun_that_goes_on_after_a_rank_has_said_why_it_ended_is_ended(served, monkeypatch):
    monkeypatch.setattr("vitscale.launch.mpi._LAST_WORDS_S", 0.1)
    word = json.dumps({"kind": "exception", "message": "host `10.0.0.2` has not answered for 28 s"})
    left = f"open('rounds/0000-w2/failure.rank000.json', 'w').write({word!r})"
    end = served(f"{left}; time.sleep(60)", round_of(2, nodes=2))
    assert end == RoundEnd("failed", "rank 0: host `10.0.0.2` has not answered for 28 s")


def test_ranks_of_several_hosts_are_asked_by_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr("vitscale.launch.mpi.time.sleep", lambda seconds: None)
    round_ = round_of(2, nodes=2)
    folder = tmp_path / "rounds" / round_.name
    folder.mkdir(parents=True)
    ranks = RanksOfMpirun(tmp_path, round_)
    try:
        ranks.start(Command([sys.executable, "-c", ""], {}), tmp_path, folder)
        assert (folder / "asked").read_text() == ""
        for number in (signal.SIGQUIT, signal.SIGTERM):
            ranks.signal(number)
        assert (folder / "asked").read_text() == "SIGQUIT\nSIGTERM\n"
    finally:
        ranks.end()


def test_a_rank_that_hydra_ended_itself_is_not_the_one(served, tmp_path):
    """Recorded: hydra names rank 0, which had told of its lost connection before hydra ended it."""
    told = KILLED["hydra"].replace("11461 RUNNING", "11460 RUNNING")
    folder = "rounds/0000-w2"
    word = json.dumps({"kind": "exception", "message": "Connection reset"})
    left = f"open('{folder}/failure.rank000.json', 'w').write({word!r})"
    end = served(f"{left}; print({told!r}); sys.exit(9)", kind="hydra")
    assert end.reason == f"rank 1 was ended by SIGKILL {EARLY}"


def test_an_mpirun_that_cannot_start_is_quoted(served):
    end = served(f"sys.stderr.write({NO_SUCH_HOST!r}); sys.exit(1)")
    assert end.status == "failed"
    assert end.reason == (
        "`mpirun` ended with status 1: ORTE was unable to reliably start one or more daemons. "
        "This usually is caused by:; see rounds/0000-w2/stderr.log"
    )


def test_ctrl_c_lets_mpirun_end_its_ranks(served, tmp_path):
    mark = tmp_path / "mark"

    def interrupt(beat):
        raise KeyboardInterrupt

    folder = tmp_path / "results" / "rounds" / "0000-w2"
    text = f"""
signal.signal(signal.SIGTERM, lambda *_: (open({str(mark)!r}, "w").write("asked"), sys.exit(143)))
sys.path[:0] = {sys.path!r}
from pathlib import Path
from vitscale.records.round import Beat, Heartbeat
for rank in (0, 1):
    Heartbeat(Path({str(folder)!r}), rank, 2).beat(Beat(0, "steady", 3, 9, None))
time.sleep(60)"""
    with pytest.raises(KeyboardInterrupt):
        served(text, watch=interrupt)
    assert mark.read_text() == "asked"


def test_a_hostfile_leaves_cores_to_the_hosts(served, tmp_path):
    served("sys.exit(0)", hosts=(Host("a", 2),))
    written = Round.read(tmp_path / "results" / "rounds" / "0000-w2" / "round.json")
    assert written.cores == ()


@pytest.mark.parametrize(
    ("told", "kind"), [(OPEN_MPI, "openmpi"), (MPICH, "hydra"), ("Intel(R) MPI Library 2021", "hydra")]
)
def test_each_mpi_is_told_by_its_version(script, monkeypatch, told, kind):
    path = script(f"print({told!r}) if sys.argv[1:] == ['--version'] else sys.exit(1)")
    monkeypatch.setenv("PATH", str(Path(path).parent), prepend=":")
    assert find_mpirun() == (path, kind)


def test_another_mpirun_is_refused_in_its_own_words(script, monkeypatch):
    monkeypatch.setenv("PATH", str(Path(script("print('mpirun of somebody')")).parent), prepend=":")
    with pytest.raises(SetupError, match="neither Open MPI's nor MPICH's: 'mpirun of somebody'"):
        find_mpirun()


def test_without_mpirun_the_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError, match="needs `mpirun`, not found") as refused:
        find_mpirun()
    assert "openmpi-bin" in refused.value.hint


def test_a_signal_without_a_name_is_told_by_its_number(served):
    told = KILLED["openmpi"].replace("signal 9 (Killed)", "signal 40 (Real-time signal 6)")
    assert served(f"sys.stderr.write({told!r}); sys.exit(1)").reason == f"rank 1 was ended by signal 40 {EARLY}"


def test_open_mpi_notices_a_network_that_is_cut_unless_the_user_says_otherwise(tmp_path):
    name = "OMPI_MCA_oob_tcp_keepalive_time"
    for given, told in (({}, "3"), ({name: "60"}, "60")):
        assert launcher("mpirun", tmp_path, environ=given).command(tmp_path, round_of(2)).environ[name] == told
