import os
import signal

import pytest

from vitscale.data.prepare import prepare
from vitscale.errors import SetupError
from vitscale.launch.lab import network, require_namespaces


@pytest.fixture(scope="session", autouse=True)
def kernel():
    """A kernel that lets us lay out hosts; Ctrl-C is heard, also where a shell in the background ignores it."""
    try:
        require_namespaces()
        with network(1, "1gbit"):
            pass
    except SetupError as error:
        # CI installs what is needed, and sets this: there a skip would hide that it did not.
        if "cluster" in os.environ.get("VITSCALE_MUST_RUN", ""):
            raise
        pytest.skip(f"{error.message} ({error.hint})")
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """A data folder in which `digits` is prepared."""
    root = tmp_path_factory.mktemp("store")
    prepare("digits", root)
    return root
