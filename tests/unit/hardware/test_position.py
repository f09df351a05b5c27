"""The place of a process among the ranks, from environments as starters leave them."""

import pytest

from vitscale.errors import SetupError
from vitscale.hardware.position import position

# Recorded on one machine: the starters themselves, from rank 1 of 2, other variables left out.
TORCHRUN = {
    "GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "localhost", "MASTER_PORT": "45997", "RANK": "1", "ROLE_NAME": "default", "ROLE_RANK": "1",
    "ROLE_WORLD_SIZE": "2", "TORCHELASTIC_MAX_RESTARTS": "0", "TORCHELASTIC_RESTART_COUNT": "0",
    "TORCHELASTIC_RUN_ID": "621a46d8-4387-4542-bd06-8904616181cf", "TORCHELASTIC_USE_AGENT_STORE": "True",
    "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT", "WORLD_SIZE": "2",
}  # fmt: skip
OPEN_MPI = {
    "OMPI_APP_CTX_NUM_PROCS": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_NODE_RANK": "1", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_FIRST_RANKS": "0", "OMPI_NUM_APP_CTX": "1", "OMPI_UNIVERSE_SIZE": "2", "PMIX_RANK": "1",
    "PMIX_NAMESPACE": "1162739713", "PMIX_HOSTNAME": "vm",
}  # fmt: skip
MPICH = {
    "MPI_LOCALNRANKS": "2", "MPI_LOCALRANKID": "1", "PMI_FD": "6", "PMI_RANK": "1", "PMI_SIZE": "2",
    "MPIR_CVAR_CH3_INTERFACE_HOSTNAME": "localhost",
}  # fmt: skip
# Likewise, from rank 3 of 4 on two hosts: DeepSpeed 0.19.8's launch.py with `--node_rank=1`, and SLURM 22.05's
# `srun --nodes=2 --ntasks-per-node=2 --distribution=block`.
DEEPSPEED = {
    "CROSS_RANK": "1", "CROSS_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_SIZE": "2", "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500", "RANK": "3", "WORLD_SIZE": "4",
}  # fmt: skip
SRUN = {
    "SLURM_CPUS_ON_NODE": "1", "SLURM_DISTRIBUTION": "block", "SLURM_GTIDS": "2,3", "SLURM_JOBID": "1",
    "SLURM_JOB_CPUS_PER_NODE": "1(x2)", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2",
    "SLURM_LOCALID": "1", "SLURM_NNODES": "2", "SLURM_NODEID": "1", "SLURM_NODELIST": "n[1-2]", "SLURM_NPROCS": "4",
    "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": "3", "SLURM_STEPID": "0", "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_TASKS_PER_NODE": "2(x2)", "SLURM_TASK_PID": "28883",
}  # fmt: skip
PMI2 = {**SRUN, "PMI_FD": "13", "PMI_JOBID": "3.0", "PMI_RANK": "3", "PMI_SIZE": "4", "SLURM_MPI_TYPE": "pmi2"}
CYCLIC = {**SRUN, "SLURM_DISTRIBUTION": "cyclic", "SLURM_GTIDS": "0,2", "SLURM_NODEID": "0", "SLURM_PROCID": "2"}
DAEMON = {
    **SRUN, "SLURM_GTIDS": "1", "SLURM_LOCALID": "0", "SLURM_NPROCS": "2", "SLURM_NTASKS": "2",
    "SLURM_NTASKS_PER_NODE": "1", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_TASKS_PER_NODE": "1(x2)",
}  # fmt: skip
"""What a process that srun starts once on each host hands on to those that it starts itself."""


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (TORCHRUN, (1, 1, 2, 2, 0)),
        (OPEN_MPI, (1, 1, 2, 2, 0)),
        (MPICH, (1, 1, 2, 2, 0)),
        (DEEPSPEED, (3, 1, 4, 2, 1)),
        (SRUN, (3, 1, 4, 2, 1)),
        # srun --mpi=pmi2: one more pair of names, not all of them.
        (PMI2, (3, 1, 4, 2, 1)),
        ({**DAEMON, **OPEN_MPI}, (1, 1, 2, 2, 0)),
        ({**DAEMON, **TORCHRUN}, (1, 1, 2, 2, 0)),
        # mpirun starts one torchrun per host.
        ({**OPEN_MPI, "OMPI_COMM_WORLD_RANK": "0", **TORCHRUN}, (1, 1, 2, 2, 0)),
        # Its own mpirun with one rank started the tool, which started these.
        ({**OPEN_MPI, "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1", **DEEPSPEED}, (3, 1, 4, 2, 1)),
        # A script that gives the ranks torchrun's names itself.
        ({**SRUN, "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, (3, 1, 4, 2, 1)),
    ],
)
def test_a_process_finds_its_place(environ, expected):
    found = position(environ)
    assert (found.rank, found.local_rank, found.world_size, found.local_world_size, found.node) == expected
    assert position(found.variables())[:4] == found[:4]


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({}, "none of `RANK`, `OMPI_COMM_WORLD_RANK`, `PMI_RANK`, `SLURM_PROCID` is set"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "`RANK` is set, `LOCAL_RANK` and `LOCAL_WORLD_SIZE` not"),
        ({"PMI_RANK": "0"}, "`PMI_RANK` is set, `PMI_SIZE` and `MPI_LOCALRANKID` and `MPI_LOCALNRANKS` not"),
        ({**TORCHRUN, "RANK": "2"}, "contradicts itself: this is rank 2 of 2, 1 of 2 on its host"),
        ({**TORCHRUN, "LOCAL_RANK": "2"}, "rank 1 of 2, 2 of 2 on its host"),
        ({**TORCHRUN, "RANK": "-1"}, "`RANK` = '-1' is not a number"),
        ({**TORCHRUN, "RANK": "1; reboot\n"}, "`RANK` = '1; reboot\\n' is not a number"),
        ({**TORCHRUN, "WORLD_SIZE": ""}, "`WORLD_SIZE` = '' is not a number"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "0"}, "1 of 0 on its host"),
        ({**DEEPSPEED, "WORLD_SIZE": "5"}, "5 ranks, 2 of them on this host: hosts differ"),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "2,1(x2)"}, "'2,1(x2)': hosts differ"),
        # srun --distribution=cyclic: the second task of the first host is rank 2.
        (CYCLIC, "rank 2 is number 1 on host 0, with 2 on each"),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_RANK": "0"}, "rank 1 is number 0 on host 0, with 2 on each"),
    ],
)
def test_what_is_missing_or_contradicts_itself_is_named_with_a_way_out(environ, message):
    with pytest.raises(SetupError) as refused:
        position(environ)
    assert message in refused.value.message
    assert refused.value.hint


@pytest.mark.parametrize("rank", ["0", "1"])
def test_what_another_start_left_in_the_environment_does_not_make_each_rank_a_world_of_its_own(rank):
    left = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    started = {**OPEN_MPI, "OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_LOCAL_RANK": rank}
    with pytest.raises(SetupError) as refused:
        position({**started, **left})
    assert refused.value.message == f"`RANK` says rank 0 of 1, `OMPI_COMM_WORLD_RANK` rank {rank} of 2"
    assert refused.value.hint == "unset RANK WORLD_SIZE"
