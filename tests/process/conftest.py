import pytest

from vitscale.data.prepare import prepare


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """A data folder in which `digits` is prepared."""
    root = tmp_path_factory.mktemp("store")
    prepare("digits", root)
    return root
