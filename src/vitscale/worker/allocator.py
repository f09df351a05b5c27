"""A process that starts again, before it has loaded anything, with another allocator."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from vitscale.config.knobs import Allocator
from vitscale.errors import SetupError
from vitscale.hardware import allocators

_PRELOAD = "LD_PRELOAD"
_MAPS = Path("/proc/self/maps")


def start_again_with(allocator: Allocator | None, environ: Mapping[str, str]) -> None:
    """Have memory from `allocator`: the process replaces itself, under its own number. Nothing where it has it already.

    Args:
        allocator: who gives it; None is the C library.
        environ: of the process as it was started.

    Raises:
        SetupError: this host does not have it, or its loader passed it over.
    """
    if allocator != "tcmalloc" or "libtcmalloc" in _MAPS.read_text():
        return
    preloaded, library = environ.get(_PRELOAD, ""), allocators.tcmalloc(environ)
    if library is None:
        raise SetupError("`engine.allocator = tcmalloc`, and this host does not have it", allocators.INSTALL)
    if str(library) in preloaded:
        raise SetupError(f"`engine.allocator = tcmalloc`, and the loader does not take `{library}`", allocators.INSTALL)
    given = {**environ, _PRELOAD: f"{library}:{preloaded}" if preloaded else str(library)}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], given)
