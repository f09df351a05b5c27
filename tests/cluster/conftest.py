import contextlib
import os
import shutil
import signal

import pytest
from slurm_cluster import cluster
from ssh_cluster import find_sshd

from vitscale.data.prepare import prepare
from vitscale.errors import SetupError
from vitscale.launch.lab import network, require_namespaces
from vitscale.launch.mpi import find_mpirun


@pytest.fixture(scope="session", autouse=True)
def heard():
    """Ctrl-C reaches what a test starts, also where a shell in the background ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def needed(suite):
    """Skip where this machine lacks something. CI installs what is needed: there a skip would hide that it did not."""
    try:
        yield
    except SetupError as error:
        if suite in os.environ.get("VITSCALE_MUST_RUN", "").split():
            raise
        pytest.skip(reason=f"{error.message} ({error.hint})")


@pytest.fixture(scope="session")
def kernel():
    """A kernel that lets us lay out hosts."""
    with needed("cluster"):
        require_namespaces()
        with network(1, "1gbit"):
            pass


@pytest.fixture(scope="session")
def mpirun():
    """An MPI that is installed."""
    with needed("mpi"):
        return find_mpirun()


@pytest.fixture(scope="session")
def mpich(tmp_path_factory):
    """An environment in which `mpirun` is MPICH's, whichever MPI has that name here."""
    with needed("mpich"):
        path = shutil.which("mpirun.mpich")
        if path is None:
            raise SetupError("no `mpirun.mpich`", "apt-get install mpich")
    folder = tmp_path_factory.mktemp("mpich")
    (folder / "mpirun").write_text(f'#!/bin/sh\nexec {path} "$@"\n')
    (folder / "mpirun").chmod(0o700)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.fixture(scope="session")
def sshd():
    """An ssh server and its client that are installed."""
    with needed("hosts"):
        find_sshd()


@pytest.fixture(scope="session")
def slurm():
    """A SLURM of two nodes."""
    with contextlib.ExitStack() as stack:
        with needed("slurm"):
            up = stack.enter_context(cluster())
        yield up


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """A data folder in which `digits` is prepared."""
    root = tmp_path_factory.mktemp("store")
    prepare("digits", root)
    return root
