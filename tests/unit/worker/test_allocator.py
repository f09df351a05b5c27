"""A process starts again with another allocator: under its own number, once, with what it was given."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vitscale.errors import SetupError
from vitscale.hardware import allocators
from vitscale.hardware.position import OPEN_MPI, position
from vitscale.records.round import Round
from vitscale.worker import __main__, allocator
from vitscale.worker.allocator import start_again_with

SCRIPT = """
import os, sys
from pathlib import Path
from vitscale.worker.allocator import start_again_with
print(os.getpid(), flush=True)
start_again_with("tcmalloc", os.environ)
print(*sys.argv[1:])
print(Path("/proc/self/maps").read_text())
"""


def test_it_is_loaded_before_anything_else(tmp_path):
    """Any library will do: what is asked is that this file is mapped."""
    some = re.search(r"/\S*/libm[.-]\S*", Path("/proc/self/maps").read_text())
    assert some, "Python is linked with another mathematical library"
    library = shutil.copy(some[0], tmp_path / "libtcmalloc_minimal.so.4")
    environ = os.environ | {"LD_LIBRARY_PATH": str(tmp_path), "LD_PRELOAD": some[0]}
    command = [sys.executable, "-P", "-c", SCRIPT, "a word", "--and"]
    told = subprocess.run(command, env=environ, capture_output=True, text=True, check=True, timeout=60).stdout
    number, again, words, *maps = told.splitlines()
    assert number == again
    assert words == "a word --and"
    assert any(line.endswith(str(library)) for line in maps)
    assert any(line.endswith(some[0]) for line in maps)


@pytest.mark.parametrize(("asked", "mapped"), [(None, ""), ("tcmalloc", "/usr/lib/libtcmalloc.so.4"), ("libc", "")])
def test_nothing_where_it_is_so_already(monkeypatch, tmp_path, asked, mapped):
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("it started again"))
    (tmp_path / "maps").write_text(f"7f10 r-xp {mapped}\n")
    monkeypatch.setattr(allocator, "_MAPS", tmp_path / "maps")
    start_again_with(asked, {})


@pytest.mark.parametrize(
    ("found", "why"), [(None, "host does not have it"), (Path("/lib/libtcmalloc.so.4"), "the loader does not take")]
)
def test_a_host_that_does_not_give_it_says_what_to_install(monkeypatch, found, why):
    monkeypatch.setattr(allocators, "tcmalloc", lambda environ: found)
    with pytest.raises(SetupError, match=why) as caught:
        start_again_with("tcmalloc", {"LD_PRELOAD": str(found)})
    assert "libtcmalloc-minimal4" in caught.value.hint


def test_a_rank_of_mpirun_is_one_of_mpirun_again(monkeypatch, tmp_path):
    """Before it starts again it has put down who it is in torchrun's words, which are not mpirun's."""
    place = {"RANK": "1", "SIZE": "2", "LOCAL_RANK": "1", "LOCAL_SIZE": "2"}
    monkeypatch.setattr(os, "environ", {f"OMPI_COMM_WORLD_{name}": value for name, value in place.items()})
    layout = {"world_size": 2, "nodes": 1, "ranks_per_node": 2, "device": "cpu", "cores": (), "entries": ()}
    round_ = Round(name="0000-w2", allocator="tcmalloc", **layout)
    (tmp_path / "round.json").write_text(round_.model_dump_json())
    monkeypatch.setattr(allocators, "tcmalloc", lambda environ: tmp_path / "libtcmalloc.so.4")
    given = {}

    def started(_program, _words, environ):
        given.update(environ)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "execve", started)
    with pytest.raises(KeyboardInterrupt):
        __main__.main(tmp_path / "round.json")
    assert given["LD_PRELOAD"] == str(tmp_path / "libtcmalloc.so.4")
    assert (position(given).starter, position(given).rank) == (OPEN_MPI, 1)
