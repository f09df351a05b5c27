"""The file that `sbatch` is given: read by the real bash, with an `srun` that says what it was handed."""

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitscale.config.load import load
from vitscale.config.study import LaunchSection
from vitscale.errors import UsageError
from vitscale.launch.inputs import Inputs
from vitscale.launch.sbatch import array, quoted, rendered, script
from vitscale.launch.slurm import Slurm
from vitscale.records.round import Checkpointing, Entry, Round

HOSTILE = "a b 'c' \"d\" $(reboot) `reboot` ;|&\t-x -- \\ !! #SBATCH --wrap=x ~ * é"
ONE_LINE = st.text(st.characters(exclude_characters="\n\0", exclude_categories=["Cs"]), max_size=40)


def round_of(world_size, nodes=1, device="cpu", threads=2, trains=False):
    plan = Checkpointing(root="checkpoints", export="export", every=1, keep=1, resume=None) if trains else None
    entry = Entry(folder="runs/a/launch0", run_id="a", launch=0, spec={"threads_per_rank": threads}, checkpoints=plan)
    return Round(
        name=f"0003-w{world_size}", world_size=world_size, nodes=nodes, ranks_per_node=world_size // nodes,
        device=device, cores=(), entries=(entry,),
    )  # fmt: skip


@pytest.fixture(scope="module")
def srun(tmp_path_factory):
    """A folder with an `srun` that writes its words and environment, and ends with status 3."""
    folder = tmp_path_factory.mktemp("bin")
    path = folder / "srun"
    path.write_text(
        f"#!{sys.executable} -IS\nimport json, os, sys\n"
        "json.dump([sys.argv, {**os.environ}], open(os.environ['TOLD'], 'w'))\nsys.exit(3)\n"
    )
    path.chmod(stat.S_IRWXU)
    return folder


@given(
    words=st.lists(ONE_LINE, max_size=4), values=st.lists(ONE_LINE, max_size=3), home=st.sampled_from(["/h o'm$e", "/"])
)
@settings(max_examples=30, deadline=None)
def test_what_stands_in_the_file_reaches_srun_as_it_is(srun, tmp_path_factory, words, values, home):
    folder = tmp_path_factory.mktemp("job")
    words = ["srun", *words, f"{home}/x{home}", HOSTILE]
    environ = {f"OWN_{number}": value for number, value in enumerate([*values, f"{home}:{home}/y", HOSTILE])}
    text = rendered({"nodes": "2"}, environ, words, ".", Path(home))
    assert home == "/" or home not in text
    file = folder / "job.sh"
    file.write_text(text, encoding="utf-8")
    subprocess.run(["bash", "-n", file], check=True)
    outside = {"PATH": f"{srun}:/usr/bin:/bin", "HOME": home, "TOLD": str(folder / "told"), "LC_ALL": "C.UTF-8"}
    subprocess.run(["bash", file], check=True, env=outside, cwd=folder)
    argv, told = json.loads((folder / "told").read_text())
    assert argv[1:] == words[1:]
    assert {name: told[name] for name in environ} == environ
    assert (folder / "status").read_text() == "3\n"


@pytest.mark.parametrize("value", ["a\nb", "a\0b", "\n#SBATCH --wrap=reboot"])
def test_what_is_not_one_line_is_refused(value):
    with pytest.raises(UsageError, match="not one line"):
        quoted(value, Path("/root"))
    with pytest.raises(UsageError, match="cannot be given to SLURM"):
        rendered({"account": value}, {}, ["srun"], ".")


@pytest.mark.parametrize("key", ["partition", "account", "qos", "constraint", "time_limit"])
@pytest.mark.parametrize("value", ["a b", "it's", 'a"b', "$(reboot)", "a\nb", "-x", "", "a;b", "é", "a\\b", "x" * 130])
def test_names_that_slurm_or_a_shell_could_take_for_more_are_refused(key, value):
    with pytest.raises(UsageError):
        load("quick", (f"launch.{key}={json.dumps(value)}",))


@pytest.mark.parametrize("limit", ["30", "90:00", "1:30:00", "01:30:00", "2-12", "2-12:30:00"])
@pytest.mark.parametrize("quote", ['"', ""])
def test_time_limits_are_written_as_slurm_writes_them(limit, quote):
    study = load("quick", (f"launch.time_limit={quote}{limit}{quote}",)).study
    assert f"#SBATCH --time={limit}\n" in script(Path("r"), round_of(2), study.launch, {})


def test_a_job_asks_for_what_its_round_needs(tmp_path):
    limits = LaunchSection(partition="main,big", account="vision", qos="high", constraint="a100&ib", time_limit="30")
    lines = script(tmp_path / "Odd name!", round_of(8, nodes=2, device="cuda", threads=None), limits, {}).splitlines()
    asked = [line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")]
    assert asked == [
        "job-name=odd-name-0003-w8", "nodes=2", "ntasks-per-node=4", "gpus-per-node=4", "partition=main,big",
        "account=vision", "qos=high", "constraint=a100&ib", "time=30", "exclusive", "mem=0", "no-requeue",
        "output=/dev/null",
    ]  # fmt: skip
    assert asked.index("exclusive") < lines.index("")  # SLURM reads them up to the first command
    assert not any("GLOO_SOCKET_IFNAME" in line for line in lines)


def test_ranks_of_one_node_share_out_its_cores_and_use_its_loopback(tmp_path):
    text = script(tmp_path, round_of(2), LaunchSection(exclusive=False), {"VITSCALE_DATA": "/data"})
    assert "#SBATCH --cpus-per-task=2\n" in text
    assert "    --cpus-per-task=2 \\\n" in text  # srun does not take it from the job since 22.05
    assert "exclusive" not in text
    assert "signal" not in text
    for line in ("VITSCALE_DATA=/data", "GLOO_SOCKET_IFNAME=lo", "OMP_NUM_THREADS=2"):
        assert f"export {line}\n" in text


def test_training_is_asked_to_stop_before_its_time_limit_and_nothing_is_started_twice(tmp_path):
    text = script(tmp_path, round_of(2, trains=True), LaunchSection(), {})
    assert "#SBATCH --signal=TERM@60\n" in text
    assert "#SBATCH --signal=TERM@91\n" in script(tmp_path, round_of(2, trains=True), LaunchSection(grace_s=90.5), {})
    assert "#SBATCH --no-requeue\n" in text


def test_the_environment_of_a_job_is_an_allow_list_and_the_study_comes_before_variables(tmp_path):
    given_ = dict.fromkeys(
        ("PATH", "NCCL_DEBUG", "SLURM_CONF", "WANDB_API_KEY", "HF_TOKEN", "SLURM_JWT", "SLURM_JOB_ID", "TMPDIR",
         "SBATCH_ACCOUNT", "SBATCH_PARTITION", "SBATCH_WRAP", "SBATCH_EXPORT", "RANK", "WORLD_SIZE"),
        HOSTILE,
    )  # fmt: skip
    inputs = Inputs(tmp_path, limits=LaunchSection(partition="main"), environ=given_)
    assert Slurm(inputs)._environ() == {
        **dict.fromkeys(("PATH", "NCCL_DEBUG", "SLURM_CONF", "SBATCH_ACCOUNT"), HOSTILE), "HOME": str(Path.home()),
    }  # fmt: skip


def test_the_file_names_no_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    text = script(tmp_path / "r", round_of(2), LaunchSection(), Inputs(tmp_path / "data").variables())
    assert str(tmp_path) not in text
    assert 'export VITSCALE_DATA="$HOME"/data\n' in text


def test_an_element_of_an_array_runs_the_file_of_its_round(tmp_path):
    rounds = [round_of(2).model_copy(update={"name": f"{number:04d}-w2"}) for number in (0, 3, 4)]
    limits = LaunchSection(partition="main", job_array=True)
    text = array(tmp_path / "Odd name!", rounds, limits)
    asked = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]
    alone = script(tmp_path / "Odd name!", rounds[0], limits, {}).splitlines()
    assert asked[0] == "job-name=odd-name-w2"
    assert asked[-1] == "array=0-2%1"  # one at a time
    assert asked[1:-1] == [line.removeprefix("#SBATCH --") for line in alone if line.startswith("#SBATCH")][1:]
    for round_ in rounds:
        (tmp_path / "rounds" / round_.name).mkdir(parents=True)
        (tmp_path / "rounds" / round_.name / "job.sh").write_text(f"echo {round_.name}\n")
    (tmp_path / "array.sh").write_text(text)
    for number, round_ in enumerate(rounds):
        environ = {"SLURM_ARRAY_TASK_ID": str(number)}
        told = subprocess.check_output(["bash", "array.sh"], env=environ, cwd=tmp_path, text=True)
        assert told == f"{round_.name}\n"


def test_a_node_that_does_not_see_the_results_folder_starts_nothing(srun, tmp_path):
    file = tmp_path / "job.sh"
    file.write_text(script(tmp_path, round_of(2), LaunchSection(), {}))
    outside = {"PATH": f"{srun}:/usr/bin:/bin", "HOME": "/", "TOLD": str(tmp_path / "told")}
    ran = subprocess.run(["bash", file], check=False, env=outside, cwd=tmp_path, stderr=subprocess.PIPE)
    assert ran.returncode != 0
    assert [path.name for path in tmp_path.iterdir()] == ["job.sh"]
    (tmp_path / "rounds" / "0003-w2").mkdir(parents=True)
    subprocess.run(["bash", file], check=True, env=outside, cwd=tmp_path)
    assert (tmp_path / "told").exists()
