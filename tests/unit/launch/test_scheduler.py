"""What SLURM is asked and what is made of its answers. Its commands here are scripts that answer as 22.05 did."""

import os
import signal
import stat

import pytest

from vitscale.errors import SetupError, UsageError
from vitscale.launch.scheduler import Scheduler, State, require_slurm

GONE = "slurm_load_jobs error: Invalid job id specified"
DOWN = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A SLURM whose commands answer as told: `answers(name, out, err, code)`; the words of each call are in `calls`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    class Fake:
        scheduler = Scheduler({"PATH": f"{folder}:/usr/bin:/bin", "SQUEUE_FORMAT": "%A", "KEPT": "1"})

        def answers(self, name, out="", err="", code=0):
            (folder / f"{name}.out").write_text(out)
            (folder / f"{name}.err").write_text(err)
            path = folder / name
            path.write_text(
                f'#!/bin/sh\nprintf "%s\\n" "$0" "$@" >>{folder}/calls; env >{folder}/env\n'
                f"cat {folder}/{name}.out; cat {folder}/{name}.err >&2; exit {code}\n"
            )
            path.chmod(stat.S_IRWXU)

        def calls(self):
            return (folder / "calls").read_text().splitlines()

        def environ(self):
            return (folder / "env").read_text()

    return Fake()


@pytest.mark.parametrize(("out", "job"), [("17\n", "17"), ("17;cluster\n", "17")])
def test_a_job_that_is_taken_has_a_number(slurm, tmp_path, out, job):
    slurm.answers("sbatch", out)
    assert slurm.scheduler.submit("rounds/a/job.sh", tmp_path, {**os.environ}, "vitscale-1") == job
    assert slurm.calls()[1:] == ["--parsable", "--comment=vitscale-1", "rounds/a/job.sh"]


def test_slurms_own_message_is_shown_where_it_refuses_a_job(slurm, tmp_path):
    refused = (
        "sbatch: error: invalid partition specified: x\n"
        "sbatch: error: Batch job submission failed: Invalid partition name specified\n"
    )
    slurm.answers("sbatch", err=refused, code=1)
    with pytest.raises(SetupError, match="refused a job: invalid partition specified: x; Batch job submission failed"):
        slurm.scheduler.submit("job.sh", tmp_path, {**os.environ}, "vitscale-1")
    slurm.answers("sbatch", "something else\n")
    with pytest.raises(SetupError, match="refused a job: status 0"):
        slurm.scheduler.submit("job.sh", tmp_path, {**os.environ}, "vitscale-1")


def test_a_job_whose_number_nobody_heard_is_found_by_its_word(slurm):
    slurm.answers("squeue", "19_10|vitscale-b\n17|vitscale-a\n19_2|vitscale-b\n18|(null)\n")
    assert slurm.scheduler.found("vitscale-a") == ["17"]
    assert slurm.scheduler.found("vitscale-b") == ["19_2", "19_10"]
    assert slurm.scheduler.found("vitscale-c") == []
    assert "SQUEUE_FORMAT" not in slurm.environ()
    slurm.answers("squeue", err=DOWN, code=1)
    with pytest.raises(SetupError, match="Unable to contact"):
        slurm.scheduler.found("vitscale-a")


@pytest.mark.parametrize(
    ("squeue", "sacct", "expected"),
    [
        (("RUNNING|n[1-2]|None\n", "", 0), None, State("RUNNING", "n[1-2]", "None")),
        (("PENDING||Priority\n", "", 0), None, State("PENDING", "", "Priority")),
        (("", GONE, 1), ("CANCELLED by 0|n1\n", "", 0), State("CANCELLED", "n1")),
        (("", "", 0), ("TIMEOUT|n[1-2]\n", "", 0), State("TIMEOUT", "n[1-2]")),
        (("", GONE, 1), ("", "Slurm accounting storage is disabled", 1), State("FORGOTTEN")),
        (("", GONE, 1), ("", "", 0), State("FORGOTTEN")),
        (("", DOWN, 1), None, None),
    ],
)
def test_a_job_that_has_left_the_queue_is_looked_up_and_one_that_slurm_cannot_tell_of_is_not_taken_for_gone(
    slurm, squeue, sacct, expected
):
    slurm.answers("squeue", *squeue)
    slurm.answers("sacct", *(sacct or ("COMPLETED|n1\n", "", 0)))
    assert slurm.scheduler.state("17") == expected
    assert "SQUEUE_FORMAT" not in slurm.environ()
    assert "KEPT" in slurm.environ()


def test_what_a_state_means():
    assert [State(name).over for name in ("PENDING", "RUNNING", "COMPLETING", "SUSPENDED")] == [False] * 4
    assert all(State(name).over for name in ("COMPLETED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "FORGOTTEN"))
    assert [State(name).waiting for name in ("PENDING", "CONFIGURING", "RUNNING", "FAILED")] == [
        True,
        True,
        False,
        False,
    ]


def test_signals_and_steps(slurm):
    slurm.answers("scancel")
    slurm.scheduler.signal("17", signal.SIGQUIT)
    assert slurm.calls()[1:] == ["--quiet", "--signal=QUIT", "17"]
    slurm.answers("squeue", "17.batch|batch\n17.0|0000-w1\n17.1|0001-w2\n")
    assert slurm.scheduler.step("17", "0001-w2") == "17.1"
    assert slurm.scheduler.step("17", "0002-w2") is None


NODES = """main*|2|16|64000|(null)
gpu|2|64|512000|gpu:a100:4(S:0-1),nvme:1
gpu|1|48|256000|gpu:2
broken line
"""


def test_nodes_are_those_of_the_partition_and_alike_in_what_each_has_at_least(slurm):
    slurm.answers("sinfo", NODES)
    found = slurm.scheduler.cluster(None)
    assert (len(found.machine.cores), found.machine.memory_bytes, found.machine.gpus) == (16, 64000 << 20, ())
    assert [host.slots for host in found.hosts] == [16, 16]
    found = slurm.scheduler.cluster("gpu")
    assert (len(found.machine.cores), len(found.machine.gpus)) == (48, 2)
    assert (found.machine.gpus[0].name, found.machine.gpus[0].memory_bytes) == ("a100", None)
    assert [host.slots for host in found.hosts] == [4, 4, 2]
    assert len(slurm.scheduler.cluster("main,gpu").hosts) == 5
    slurm.scheduler.cluster("gpu", "n[3-4]")
    assert slurm.calls()[-1] == "--nodes=n[3-4]"


def test_a_partition_that_is_not_there_is_an_error_that_names_the_others(slurm):
    slurm.answers("sinfo", NODES)
    with pytest.raises(UsageError, match="no partition `x`") as refused:
        slurm.scheduler.cluster("x")
    assert "one of main, gpu" in refused.value.hint
    slurm.answers("sinfo", NODES.replace("*", ""))
    with pytest.raises(UsageError, match="no default partition"):
        slurm.scheduler.cluster(None)
    slurm.answers("sinfo", err=DOWN, code=1)
    with pytest.raises(SetupError, match="Unable to contact slurm controller"):
        slurm.scheduler.cluster(None)


def test_without_slurm_its_commands_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError, match="needs `sbatch`, `srun`, `squeue`"):
        require_slurm()
