"""Studies whose ranks a real SLURM starts on two nodes: as jobs that outlive the command, and as steps of one job."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys

import psutil
import pytest
from hosts import unshared
from ranks import finish, launches, over_tiny, start, wait_until, worker_processes

from vitscale.launch import jobs
from vitscale.records import checkpoint
from vitscale.records.examination import DoctorReport
from vitscale.records.round import read_heartbeats

pytestmark = [pytest.mark.process, pytest.mark.timeout(180)]

CANARY = {"WANDB_API_KEY": "canary", "HF_TOKEN": "canary", "SBATCH_WRAP": "canary"}


def by_slurm(store, slurm, results, *words, environ=None, **more):
    words = ("engine=ddp", "global_batch=8", "steps=5", *words)
    environ = {**slurm.environ, **CANARY, **(environ or {})}
    return start(store, results, *words, flags=("--launcher", "slurm"), environ=environ, **more)


def submitted(results):
    """Jobs that a folder's rounds were given to, in order."""
    path = results / "jobs.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line["job"] for line in lines if "submitted" in line]


def in_training(results, name, step=1):
    """Whether all ranks of a round have taken so many steps."""
    world_size, folder = int(name.partition("-w")[2]), results / "rounds" / name
    beats = read_heartbeats(folder, world_size, world_size)
    return all(beat and beat.step >= step for beat in beats)


def test_each_world_size_is_a_job_and_ranks_of_two_nodes_train_together(store, slurm, tmp_path):
    results = tmp_path / 'it\'s 100 %j $(a) "name"; #'  # which neither SLURM nor a shell takes for more than a name
    code, err = finish(by_slurm(store, slurm, results, "world_size=1,2"))
    assert code == 0, err
    assert "0000-w1 is job" in err
    one, two = launches(results).values()
    assert [one["status"], two["status"]] == ["ok", "ok"]
    assert [(two["layout"]["nodes"], two["layout"]["ranks_per_node"])] == [(2, 1)]
    assert [(rank["rank"], rank["node"], rank["local_rank"]) for rank in two["devices"]] == [(0, 0, 0), (1, 1, 0)]
    assert len(submitted(results)) == 2
    assert jobs.unfinished(results) == {}
    for script in (results / "rounds").glob("*/job.sh"):
        assert stat.S_IMODE(script.stat().st_mode) == 0o600
    assert not [path for path in results.rglob("*") if path.is_file() and b"canary" in path.read_bytes()]


def test_ctrl_c_leaves_the_job_running_and_the_same_command_picks_it_up(store, slurm, tmp_path):
    words = ("world_size=2", "steps=60")
    first = by_slurm(store, slurm, tmp_path, *words, inject="sleep rank=0 where=forward seconds=0.1")
    wait_until(lambda: in_training(tmp_path, "0000-w2"), 90, "two ranks in training")
    first.send_signal(signal.SIGINT)
    code, err = finish(first, 20)
    (job,) = submitted(tmp_path)
    assert code == 75, err
    assert f"SLURM goes on with job {job}" in err
    assert slurm.jobs() == [job]
    code, err = finish(start(store, tmp_path, *words, "engine=ddp", "global_batch=8"))
    assert code == 10, err
    assert f"job {job}" in err  # another launcher keeps out
    code, err = finish(by_slurm(store, slurm, tmp_path, *words))
    assert code == 0, err
    assert submitted(tmp_path) == [job]
    assert [manifest["status"] for manifest in launches(tmp_path).values()] == ["ok"]


def test_a_tool_that_is_killed_before_it_hears_a_jobs_number_submits_nothing_twice(store, slurm, tmp_path):
    folder, results = tmp_path / "bin", tmp_path / "out"
    folder.mkdir()
    (folder / "sbatch").write_text(f'#!/bin/sh\n{shutil.which("sbatch")} "$@" >/dev/null\nkill -9 "$PPID"\n')
    (folder / "sbatch").chmod(0o700)
    path = {"PATH": f"{folder}:{os.environ['PATH']}"}
    assert finish(by_slurm(store, slurm, results, "world_size=2", environ=path))[0] == -signal.SIGKILL
    assert submitted(results) == []
    (job,) = slurm.jobs()
    code, err = finish(by_slurm(store, slurm, results, "world_size=2"))
    assert code == 0, err
    assert submitted(results) == [job]
    assert [manifest["status"] for manifest in launches(results).values()] == ["ok"]


def test_launches_of_a_world_size_are_an_array_that_is_left_and_picked_up(store, slurm, tmp_path):
    words = ("world_size=2", "launches=2", "steps=30", "launch.job_array=true")
    first = by_slurm(store, slurm, tmp_path, *words, inject="sleep rank=0 where=forward seconds=0.1")
    wait_until(lambda: in_training(tmp_path, "0000-w2"), 90, "two ranks in training")
    number = submitted(tmp_path)[0].partition("_")[0]
    first.send_signal(signal.SIGINT)
    code, err = finish(first, 20)
    assert code == 75, err
    assert f"SLURM goes on with job {number}\n" in err
    assert {job.partition("_")[0] for job in slurm.jobs()} == {number}
    code, err = finish(by_slurm(store, slurm, tmp_path, *words))
    assert code == 0, err
    assert submitted(tmp_path) == [f"{number}_0", f"{number}_1"]
    ends = [(manifest["round"], manifest["status"]) for manifest in launches(tmp_path).values()]
    assert ends == [("0000-w2", "ok"), ("0001-w2", "ok")]
    assert jobs.unfinished(tmp_path) == {}


def test_a_rank_that_is_killed_is_named_with_its_node_and_a_job_that_is_cancelled_by_its_number(store, slurm, tmp_path):
    inject = f"kill rank=1 step=2 once={tmp_path}/mark; hang rank=0 step=3"
    process = by_slurm(store, slurm, tmp_path, "world_size=2", inject=inject)
    wait_until(lambda: in_training(tmp_path, "0001-w2", 2), 120, "the second attempt in training")
    first, second = submitted(tmp_path)
    slurm.command("scancel", second)
    code, err = finish(process, 60)
    assert code == 5, err
    ends = [(manifest["status"], manifest["reason"]) for manifest in launches(tmp_path).values()]
    assert ends == [
        ("failed", "rank 1 on node `n2` was ended by SIGKILL after step 3 (steady)"),
        ("killed", f"job {second} was cancelled"),
    ]
    assert submitted(tmp_path) == [first, second]  # what a user cancels is not submitted again
    wait_until(lambda: not worker_processes(tmp_path), 15, "no rank is left")


def test_training_that_is_asked_to_stop_writes_a_checkpoint_and_is_an_interruption(store, slurm, tmp_path):
    """What SLURM does `launch.grace_s` before a time limit, done by hand: limits are whole minutes."""
    words = over_tiny(("world_size=2", "engine=ddp", "train.max_steps=20000", "train.checkpoint_epochs=4000"))
    words += ["--launcher", "slurm", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "vitscale", "train", "quick", *words]
    environ = {**os.environ, "VITSCALE_DATA": str(store), **slurm.environ}
    process = subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: list(tmp_path.glob("runs/*/launch0/eval.jsonl")), 90, "the first evaluation")
    (job,) = submitted(tmp_path)
    assert "#SBATCH --signal=TERM@60\n" in (tmp_path / "rounds/0000-w2/job.sh").read_text()
    slurm.command("scancel", "--signal=TERM", job)
    code, err = finish(process, 60)
    assert code == 75, err
    (manifest,) = launches(tmp_path).values()
    assert manifest["status"] == "killed"
    assert "asked to stop after step" in manifest["reason"]
    assert len(checkpoint.complete(tmp_path / "checkpoints")) == 1
    assert jobs.unfinished(tmp_path) == {}


def test_a_job_at_its_time_limit_ends_the_command_with_75(store, slurm, tmp_path):
    process = by_slurm(store, slurm, tmp_path, "world_size=2", inject="hang rank=0 step=1")
    wait_until(lambda: in_training(tmp_path, "0000-w2"), 90, "two ranks in training")
    (job,) = submitted(tmp_path)
    slurm.command("scontrol", "update", f"JobId={job}", "EndTime=now+1")  # SLURM looks every 30 s
    code, err = finish(process, 90)
    assert code == 75, err
    (manifest,) = launches(tmp_path).values()
    assert (manifest["status"], manifest["reason"]) == (
        "timeout",
        f"job {job} reached its time limit (launch.time_limit)",
    )
    assert submitted(tmp_path) == [job]  # the next one would end there too
    wait_until(lambda: not worker_processes(tmp_path), 15, "no rank is left")


def test_a_job_that_is_preempted_is_measured_in_another(store, slurm, tmp_path):
    inject = f"hang rank=0 step=1 once={tmp_path}/mark"
    process = by_slurm(store, slurm, tmp_path / "out", "world_size=2", inject=inject)
    wait_until((tmp_path / "mark").exists, 90, "a rank that hangs")
    (job,) = submitted(tmp_path / "out")
    urgent = ("--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null")
    slurm.command("sbatch", *urgent, "--wrap", "sleep 1", cwd=tmp_path)
    code, err = finish(process)
    assert code == 0, err
    ends = [(manifest["status"], manifest["reason"]) for manifest in launches(tmp_path / "out").values()]
    assert ends == [("killed", f"job {job} was preempted"), ("ok", None)]


def test_a_node_that_is_lost_is_named_and_its_run_measured_when_it_is_back(store, slurm, tmp_path):
    inject = f"hang rank=0 step=1 once={tmp_path}/mark"
    process = by_slurm(store, slurm, tmp_path / "out", "world_size=2", inject=inject)
    wait_until((tmp_path / "mark").exists, 90, "a rank that hangs")
    (job,) = submitted(tmp_path / "out")
    slurm.daemons["slurmd.n2"].kill()
    slurm.daemons["slurmd.n2"].wait()
    wait_until(lambda: launches(tmp_path / "out"), 90, "the end of the launch")  # SlurmdTimeout is 20 s
    slurm.start("slurmd.n2", "slurmd", "-D", "-N", "n2")
    code, err = finish(process)
    assert code == 0, err
    ends = [(manifest["status"], manifest["reason"]) for manifest in launches(tmp_path / "out").values()]
    assert ends == [("failed", f"job {job} lost a node: n2"), ("ok", None)]
    wait_until(lambda: not worker_processes(tmp_path / "out"), 15, "no rank is left")


def test_within_a_job_a_round_is_a_step_of_it_and_the_end_of_the_tool_ends_its_ranks(store, slurm, tmp_path):
    inside = ("salloc", "--quiet", "--nodes=2", "--ntasks-per-node=1")
    code, err = finish(by_slurm(store, slurm, tmp_path / "a", "world_size=2", prefix=inside))
    assert code == 0, err
    assert [manifest["status"] for manifest in launches(tmp_path / "a").values()] == ["ok"]
    assert submitted(tmp_path / "a") == []
    results = tmp_path / "b"
    process = by_slurm(store, slurm, results, "world_size=2", inject="hang rank=0 step=1", prefix=inside)
    wait_until(lambda: in_training(results, "0000-w2"), 90, "two ranks in training")
    (tool,) = psutil.Process(process.pid).children()
    tool.kill()
    finish(process, 30)
    wait_until(lambda: not worker_processes(results), 30, "its ranks are gone")


def test_what_srun_starts_for_each_rank_is_one_study(store, slurm, tmp_path):
    srun = (
        "srun",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--kill-on-bad-exit=1",
        "--cpu-bind=none",
        "--distribution=block",
    )
    words = ("world_size=2", "nodes=2", "engine=ddp", "global_batch=8", "steps=4")
    process = start(store, tmp_path, *words, flags=("--launcher", "env"), prefix=srun, environ=slurm.environ)
    code, err = finish(process)
    assert code == 0, err
    (manifest,) = launches(tmp_path).values()
    assert manifest["status"] == "ok"
    assert [(one["rank"], one["node"], one["local_rank"]) for one in manifest["devices"]] == [(0, 0, 0), (1, 1, 0)]
    wait_until(lambda: not worker_processes(tmp_path), 15, "no rank is left")


def test_doctor_without_a_study_looks_at_every_node_and_ctrl_c_ends_its_job(store, slurm, tmp_path):
    environ = {key: value for key, value in os.environ.items() if not key.startswith("VITSCALE")}
    environ |= {"VITSCALE_DATA": str(store), **slurm.environ}
    command = [sys.executable, "-m", "vitscale", "doctor", "depth=2", "embed_dim=48", "--launcher", "slurm"]
    results = tmp_path / "results/doctor"

    def begun():
        return subprocess.Popen(command, cwd=tmp_path, env=environ, stderr=subprocess.PIPE, text=True)

    first = begun()
    wait_until(lambda: jobs.unfinished(results), 60, "a job")
    first.send_signal(signal.SIGINT)
    assert finish(first, 60)[0] == 75
    assert slurm.jobs() == []
    assert jobs.unfinished(results) == {}
    code, err = finish(begun())
    assert code in (0, 3), err
    found = DoctorReport.model_validate_json((results / "doctor.json").read_bytes())
    assert (found.nodes, found.ranks_per_node, found.round) == (2, 1, "0001-w2")
    assert {one.name for one in found.checks if one.status == "failed"} <= {"interface"}  # both nodes are this host
    assert found.together is not None
    assert worker_processes(results) == []


def test_a_node_that_does_not_see_the_results_folder_ends_the_command(store, slurm, tmp_path):
    results = tmp_path / "out"
    code, err = finish(by_slurm(store, slurm, results, "world_size=1", prefix=unshared(results)))
    assert code == 3, err
    assert "left no word in the results folder, which its nodes have to share\n\nhint: `--out` on a file system" in err
    assert list(results.iterdir()) == []


def test_a_job_that_slurm_refuses_is_an_error_with_its_message(store, slurm, tmp_path):
    code, err = finish(by_slurm(store, slurm, tmp_path, "world_size=2", "launch.time_limit=120"))
    assert code == 3
    assert "`sbatch` refused a job: " in err
    assert "ime limit" in err
    code, err = finish(by_slurm(store, slurm, tmp_path / "x", "launch.partition=there", "world_size=2"))
    assert code == 2
    assert "main, urgent" in err
