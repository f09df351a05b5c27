import os
import signal
import subprocess
import sys

import pytest
from ranks import over_tiny

from vitscale.data.prepare import prepare


@pytest.fixture(scope="session", autouse=True)
def heard():
    """Ctrl-C reaches what a test starts, also where a shell in the background ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """A data folder in which `digits` is prepared."""
    root = tmp_path_factory.mktemp("store")
    prepare("digits", root)
    return root


@pytest.fixture
def train(store, tmp_path):
    """Start `vitscale train quick` with a tiny model in a process of its own."""

    def start(*words, out="out", inject=""):
        environ = {**os.environ, "VITSCALE_DATA": str(store), "VITSCALE_INJECT": inject}
        command = [sys.executable, "-m", "vitscale", "train", "quick", *over_tiny(words), "--out", str(tmp_path / out)]
        return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


@pytest.fixture(scope="session")
def trained(store, tmp_path_factory):
    """A results folder with two checkpoints, killed before its end. Copy it."""
    out = tmp_path_factory.mktemp("trained")
    environ = {**os.environ, "VITSCALE_DATA": str(store), "VITSCALE_INJECT": "kill rank=0 step=9"}
    words = [*over_tiny(("world_size=1", "train.restarts=0")), "--out", str(out)]
    command = [sys.executable, "-m", "vitscale", "train", "quick", *words]
    assert subprocess.run(command, env=environ, capture_output=True).returncode == 5
    return out
