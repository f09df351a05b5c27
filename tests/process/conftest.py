import signal

import pytest
from ranks import finish, over_tiny, start_training

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
        return start_training(store, tmp_path / out, *words, inject=inject)

    return start


@pytest.fixture
def refused(vitscale, store, tmp_path, monkeypatch):
    """What the same command says, in this process, where it refuses what is in the results folder."""
    monkeypatch.setenv("VITSCALE_DATA", str(store))

    def refused(*words):
        ran = vitscale("train", "quick", *over_tiny(words), "--out", tmp_path / "out")
        assert ran.code == 9, ran.err
        return ran.error

    return refused


@pytest.fixture(scope="session")
def trained(store, tmp_path_factory):
    """A results folder with two checkpoints, killed before its end. Copy it."""
    out = tmp_path_factory.mktemp("trained")
    code, err = finish(start_training(store, out, "world_size=1", "train.restarts=0", inject="kill rank=0 step=9"))
    assert code == 5, err
    return out
