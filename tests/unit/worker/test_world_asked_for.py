"""A rank that was not started among as many as the round has ends before it loads anything."""

import os
import socket
import subprocess
import sys

import pytest

from vitscale.records.round import Round, read_failures

STARTED = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (
            {**STARTED, "OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_LOCAL_SIZE": "3"},
            "Open MPI's mpirun started 3 ranks, 3 on each host; asked for were 2, 2 on each host",
        ),
        (
            {**STARTED, "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"},
            "Open MPI's mpirun started 2 ranks, 1 on each host; asked for were 2, 2 on each host",
        ),
        ({}, "no starter told this process its rank"),
    ],
)
def test_another_world_than_asked_for_is_a_failure_with_both_numbers(tmp_path, environ, message):
    round_ = Round(name="0000-w2", world_size=2, nodes=1, ranks_per_node=2, device="cpu", cores=(), entries=())
    (tmp_path / "round.json").write_text(round_.model_dump_json())
    command = [sys.executable, "-P", "-m", "vitscale.worker", "round.json"]
    kept = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "LANG")}
    ran = subprocess.run(command, cwd=tmp_path, env=kept | environ, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert ran.returncode == 1
    (failure,) = read_failures(tmp_path, 2)
    assert (failure.rank, failure.kind) == (0, "setup")
    assert failure.message.startswith(message)
    assert not list(tmp_path.glob("heartbeat*"))


def test_a_host_that_does_not_see_the_folder_says_so_where_its_starter_hears_it(tmp_path):
    command = [sys.executable, "-P", "-m", "vitscale.worker", "rounds/0000-w2/round.json"]
    ran = subprocess.run(command, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr.startswith(f"host {socket.gethostname()} does not see the results folder\n")
    assert list(tmp_path.iterdir()) == []
