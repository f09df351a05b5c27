"""The shipped study `quick`, with fewer launches and steps, on two nodes by each launcher that reaches them."""

import contextlib
import json
import os
import subprocess
import sys

import pytest
from ranks import finish, launches, worker_processes
from ssh_cluster import ssh_hosts
from test_mpi import hosts as mpi_hosts  # noqa: F401 (a fixture)

pytestmark = [pytest.mark.process, pytest.mark.timeout(200)]

WORDS = ("measure.launches=1", "world_size=2", "nodes=2", "warmup_steps=1", "steps=3")


@contextlib.contextmanager
def by_ssh(request, folder):
    """Two hosts that ssh reaches: overrides, environment, and what starts a command on the first."""
    request.getfixturevalue("kernel")
    request.getfixturevalue("sshd")
    with ssh_hosts(folder) as hosts:
        yield (f"launch.hostfile={hosts.hostfile}",), hosts.environ, hosts.prefix


@contextlib.contextmanager
def by_mpirun(request, folder):
    """Two hosts that mpirun reaches."""
    request.getfixturevalue("mpirun")
    prefix, environ, hostfile = request.getfixturevalue("mpi_hosts")
    yield (f"launch.hostfile={hostfile}",), environ, prefix


@contextlib.contextmanager
def by_slurm(request, folder):
    """The nodes of a SLURM."""
    yield (), request.getfixturevalue("slurm").environ, ()


@contextlib.contextmanager
def by_lab(request, folder):
    """Two hosts that the launcher lays out."""
    request.getfixturevalue("kernel")
    yield ("launch.link=1gbit",), {}, ()


@pytest.mark.parametrize(
    ("launcher", "cluster"), [("hosts", by_ssh), ("mpi", by_mpirun), ("slurm", by_slurm), ("lab", by_lab)]
)
def test_the_shipped_study_is_measured_on_two_nodes(store, tmp_path, request, launcher, cluster):
    results = tmp_path / "results"
    with cluster(request, tmp_path / "cluster") as (words, environ, prefix):
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("VITSCALE")}
        command = [*prefix, sys.executable, "-m", "vitscale", "run", "quick", *WORDS, *words]
        process = subprocess.Popen(
            [*command, "--launcher", launcher, "--out", str(results)],
            env={**inherited, "VITSCALE_DATA": str(store), **environ},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        code, err = finish(process, 170)
    assert code == 0, err
    found = launches(results)
    assert [manifest["status"] for manifest in found.values()] == ["ok", "ok"]
    for (run_id, launch), manifest in found.items():
        spec = json.loads((results / "runs" / run_id / launch / "run.json").read_text())
        assert (spec["engine"], spec["model"]["name"], spec["nodes"]) == ("deepspeed", "vit_tiny_patch16_224", 2)
        assert [(one["rank"], one["node"], one["local_rank"]) for one in manifest["devices"]] == [(0, 0, 0), (1, 1, 0)]
    assert sorted(run["protocol"] for run in json.loads((results / "analysis.json").read_text())["runs"]) == [
        "strong",
        "weak",
    ]
    assert (results / "report" / "index.html").stat().st_size > 0
    assert worker_processes(results) == []
