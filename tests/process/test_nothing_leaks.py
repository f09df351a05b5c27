"""What training and its report leave behind, and whom they talk to: no secret in a file, and nobody elsewhere."""

import ast
import gzip
import ipaddress
import os
import socket
import subprocess
import sys

import pytest
from ranks import over_tiny

pytestmark = [pytest.mark.process, pytest.mark.timeout(150)]

CANARY = "canary-81c07e"
SECRETS = {
    name: f"{CANARY}-{name.lower()}"
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "NCCL_X", "USER")
}
# Python's own account of who is looked up and connected to, from the tool and from every rank.
WATCH = """
import os, sys

_seen = os.open(os.environ["VITSCALE_SEEN"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

def _watch(event, args):
    if event in ("socket.connect", "socket.sendto"):
        os.write(_seen, f"{args[1]!r}\\n".encode())
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        os.write(_seen, f"{(args[0] or '', 0)!r}\\n".encode())

sys.addaudithook(_watch)
os.write(_seen, b"'started'\\n")
"""


class Place:
    """A home, a repository with a secret in its remote, and who was talked to."""

    def __init__(self, folder):
        self.home, self.seen_file = folder / f"{CANARY}-home", folder / "seen"
        self.repository, self.results = self.home / "work", self.home / "work" / "results"
        (folder / "watch").mkdir()
        (folder / "watch" / "sitecustomize.py").write_text(WATCH)
        self.repository.mkdir(parents=True)
        for words in (["init", "-q"], ["remote", "add", "origin", f"https://me:{CANARY}-remote@example.org/x.git"]):
            subprocess.run(["git", *words], cwd=self.repository, check=True)
        self.environ = {**os.environ, **SECRETS, "HOME": str(self.home), "VITSCALE_SEEN": str(self.seen_file)}
        self.environ |= {"PYTHONPATH": str(folder / "watch"), "VITSCALE_DATA": str(self.home / "data")}

    def python(self, *words):
        return subprocess.run(
            [sys.executable, *words], cwd=self.repository, env=self.environ, capture_output=True, text=True
        )

    def seen(self):
        """What was looked up or connected to."""
        return [ast.literal_eval(line) for line in self.seen_file.read_text().splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two ranks have trained, with checkpoints and an export, and a report was written."""
    place = Place(tmp_path_factory.mktemp("leaks"))
    words = over_tiny(("world_size=2", "zero_stage=1", "train.max_steps=6"))
    for command in (("train", "quick", *words, "--out", "results"), ("report", "results")):
        ran = place.python("-m", "vitscale", *command)
        assert ran.returncode == 0, ran.stderr
        assert CANARY not in ran.stdout + ran.stderr
    return place


def test_no_secret_is_in_any_file_of_a_training_and_its_report(place):
    files = [path for path in place.results.rglob("*") if path.is_file()]
    kinds = {path.relative_to(place.results).parts[0] for path in files}
    assert kinds >= {"runs", "rounds", "checkpoints", "export", "report", "analysis.json"}
    found = [str(path) for path in files if CANARY.encode() in whole(path)]
    assert found == []


def whole(path):
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def test_nobody_outside_this_machine_is_talked_to(place):
    seen = place.seen()
    assert seen.count("started") >= 4  # the tool twice, and two ranks
    hosts = {one[0] for one in seen if isinstance(one, tuple)}
    assert {host for host in hosts if not is_here(host)} == set()


def is_here(host):
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in ("", "localhost", socket.gethostname())


def test_the_watch_does_see_who_is_talked_to(place):
    place.python("-c", "import socket; s = socket.socket(); s.setblocking(False); s.connect(('192.0.2.1', 9))")
    assert ("192.0.2.1", 9) in place.seen()
