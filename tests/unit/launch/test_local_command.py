"""What a rank on this host is started with."""

from vitscale.hardware.position import position
from vitscale.launch.inputs import Inputs
from vitscale.launch.local import Local
from vitscale.records.round import Entry, Round

NEEDED = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "CUDA_VISIBLE_DEVICES", "NCCL_DEBUG", "VITSCALE_INJECT")


def test_a_rank_is_told_no_secret_and_nothing_of_the_job_that_the_tool_itself_runs_in(tmp_path):
    outside = {
        "OMPI_COMM_WORLD_RANK": "3",
        "OMPI_COMM_WORLD_SIZE": "4",
        "OMPI_COMM_WORLD_LOCAL_RANK": "0",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
        "GROUP_RANK": "3",
        "SLURM_PROCID": "3",
        **dict.fromkeys(("HF_TOKEN", "WANDB_API_KEY", "NVIDIA_API_KEY", "FOO"), "canary"),
        **dict.fromkeys(NEEDED, "kept"),
    }
    entry = Entry(folder="runs/a/launch0", run_id="a", launch=0, spec={"threads_per_rank": 1})
    round_ = Round(name="0000-w2", world_size=2, nodes=1, ranks_per_node=2, device="cpu", cores=(), entries=(entry,))
    launcher = Local(Inputs(tmp_path, environ=outside))
    for rank in (0, 1):
        environ = launcher.command(tmp_path / "rounds" / round_.name, round_, rank).environ
        assert position(environ)[:4] == (rank, rank, 2, 2)
        assert {name for name, value in environ.items() if value == "kept"} == {*NEEDED}
        assert "canary" not in environ.values()
