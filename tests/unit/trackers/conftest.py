"""A results folder with one launch, a tracker that remembers what it hears, and a program that tracks among secrets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[2] / "golden" / "make_study.py"

PROGRAM = """
import importlib.util, platform, socket, sys
from pathlib import Path
socket.gethostname = platform.node = lambda: "canary-host"
spec = importlib.util.spec_from_file_location("make", sys.argv[1])
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)
from vitscale.trackers import Follower, open_trackers
root = make.write_study(Path.home() / "results")
elsewhere = make.make_spec(1, deepspeed={"nvme_path": str(Path.home() / "offload")})
folder = make.write_launch(root, elsewhere, accuracy=0.9)
trackers = open_trackers([sys.argv[2]], root)
dropped = []
with Follower(root, folder, trackers, dropped.append):
    pass
sys.exit("\\n".join(dropped) or 0)
"""

SECRETS = {
    "USER": "canary-user",
    "LOGNAME": "canary-user",
    "USERNAME": "canary-user",
    "SECRET_TOKEN": "canary-env",
    "WANDB_API_KEY": "canary-key-" + "k" * 40,
    "WANDB_NOTES": "canary-notes",
    "WANDB_TAGS": "canary-tag",
    "WANDB_HOST": "canary-wandb-host",
    "HF_TOKEN": "canary-hub",
    "MLFLOW_TRACKING_USERNAME": "canary-user",
    "MLFLOW_TRACKING_PASSWORD": "canary-password",
}


@pytest.fixture
def root(make, tmp_path):
    return make.write_study(tmp_path / "results")


@pytest.fixture
def leaks(tmp_path):
    """Runs a tracker in a process full of secrets; what it wrote that holds one, and what it wrote in all."""

    def run(name):
        home = tmp_path / "canary-home"
        (home / "work" / ".git").mkdir(parents=True)
        (home / "work" / ".git" / "HEAD").write_text("ref: refs/heads/canary-branch\n")
        remote = '[remote "origin"]\n\turl = https://canary-git@example.org/x.git\n'
        (home / "work" / ".git" / "config").write_text(remote)
        environment = {**os.environ, **SECRETS, "HOME": str(home)}
        for variable in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "WANDB_CACHE_DIR", "HF_HOME"):
            environment.pop(variable, None)
        command = [sys.executable, "-c", PROGRAM, GOLDEN, name, "--token=canary-argv"]
        subprocess.run(command, check=True, cwd=home / "work", env=environment, timeout=60)
        written = [path for path in home.rglob("*") if path.is_file() and ".git" not in path.parts]
        written = [path for path in written if (home / "results" / "runs") not in path.parents]
        tracked = [path for path in written if home / "results" / "trackers" / name in path.parents]
        found = [path for path in written if b"canary" in path.read_bytes().lower()]
        return found + [path for path in written if "canary" in str(path.relative_to(home))], tracked

    return run
