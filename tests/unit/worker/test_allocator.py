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
from vitscale.worker.allocator import start_again_with

SCRIPT = """
import os, sys
from pathlib import Path
from vitscale.worker.allocator import start_again_with
print(os.getpid(), flush=True)
start_again_with("tcmalloc")
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


@pytest.mark.parametrize(
    ("allocator", "preloaded"), [(None, ""), ("tcmalloc", "/usr/lib/libtcmalloc.so.4"), ("libc", "")]
)
def test_nothing_where_it_is_so_already(monkeypatch, allocator, preloaded):
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("it started again"))
    monkeypatch.setenv("LD_PRELOAD", preloaded)
    start_again_with(allocator)


def test_a_host_without_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(allocators, "tcmalloc", lambda environ: None)
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    with pytest.raises(SetupError, match="this host does not have it") as caught:
        start_again_with("tcmalloc")
    assert "libtcmalloc-minimal4" in caught.value.hint
