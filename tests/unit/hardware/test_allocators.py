"""tcmalloc is found where the loader would find it, first where the environment says."""

import platform

import pytest

from vitscale.hardware.allocators import tcmalloc
from vitscale.hardware.probe import probe

NAME = "libtcmalloc_minimal.so.4"


def put(folder, name=NAME):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()
    return folder / name


@pytest.mark.parametrize("folder", ["usr/local/lib", "usr/lib64", f"usr/lib/{platform.machine()}-linux-gnu", "usr/lib"])
def test_in_the_systems_folders(tmp_path, folder):
    found = put(tmp_path / folder)
    assert tcmalloc({}, tmp_path) == found
    assert probe({}, tmp_path).tcmalloc


def test_where_it_is_not(tmp_path):
    (tmp_path / "usr" / "lib").mkdir(parents=True)
    assert tcmalloc({"LD_LIBRARY_PATH": "", "CONDA_PREFIX": ""}, tmp_path) is None
    assert not probe({}, tmp_path).tcmalloc


def test_the_environments_come_first(tmp_path):
    put(tmp_path / "usr" / "lib")
    conda = put(tmp_path / "conda" / "lib")
    own = put(tmp_path / "own", "libtcmalloc.so.4")
    assert tcmalloc({"CONDA_PREFIX": str(tmp_path / "conda")}, tmp_path) == conda
    given = {"CONDA_PREFIX": str(tmp_path / "conda"), "LD_LIBRARY_PATH": f"/nowhere:{tmp_path / 'own'}"}
    assert tcmalloc(given, tmp_path) == own
