"""`vitscale doctor` on two real ranks of this host, and with ranks that do not fit the world that was asked for."""

import os
import socket
import subprocess
import sys

import pytest
from ranks import finish, launches, start, worker_processes

from vitscale.records.examination import DoctorReport

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]


def test_two_ranks_of_this_host_are_looked_at_and_nothing_is_trained(store, tmp_path):
    environ = {key: value for key, value in os.environ.items() if not key.startswith("VITSCALE")}
    # A port that others take for granted, an accelerator that is not there, a world of somebody else's: no matter.
    environ |= {"VITSCALE_DATA": str(store), "DS_ACCELERATOR": "cuda", "MASTER_PORT": "29500", "WORLD_SIZE": "7"}
    words = ("world_size=1,2", "model.name=vit_tiny_patch16_224", "depth=2", "embed_dim=48")
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", 29500))
        taken.listen()
        ran = subprocess.run(
            [sys.executable, "-m", "vitscale", "doctor", "quick", *words],
            cwd=tmp_path, env=environ, capture_output=True, text=True,
        )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    folder = tmp_path / "results/quick"
    found = DoctorReport.model_validate_json((folder / "doctor.json").read_bytes())
    assert (found.healthy, found.world_size, found.nodes, len(found.hosts)) == (True, 2, 1, 1)
    assert found.hosts[0].interface.name == "lo"
    assert found.together.hosts[0].unseen == ()
    assert found.together.hosts[0].clock_offset_s == 0
    # gloo's own sockets: none at all would mean that the wrong process was looked at.
    assert found.together.hosts[0].listens
    assert all(one.startswith("lo:") for one in found.together.hosts[0].listens)
    (pair,) = found.together.pairs
    assert (pair.a, pair.b, len(pair.there_s), len(pair.back_s)) == (0, 1, 3, 3)
    assert not (folder / "runs").exists()
    assert "ranks talk" in ran.stdout
    assert "results/quick/doctor.json" in ran.stdout
    assert worker_processes(folder) == []


def test_a_starter_that_starts_fewer_ends_the_study_before_anything_is_trained(store, tmp_path):
    fake = tmp_path / "fake"
    fake.mkdir()
    (fake / "sitecustomize.py").write_text(FEWER)
    process = start(
        store, tmp_path / "out", "world_size=2", "global_batch=8", "steps=1", environ={"PYTHONPATH": str(fake)}
    )
    code, err = finish(process)
    assert code == 3, err
    assert "asked for were 2, 2 on each host" in err
    assert launches(tmp_path / "out") == {}
    assert len(list((tmp_path / "out/rounds").iterdir())) == 1


# A starter that starts fewer: each rank is told of a world of one.
FEWER = """
import os
if os.environ.get("WORLD_SIZE") == "2":
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1")
"""
