"""A process that starts again, before it has loaded anything, with another allocator."""

from __future__ import annotations

import os
import sys

from vitscale.config.knobs import Allocator
from vitscale.errors import SetupError
from vitscale.hardware import allocators

_PRELOAD = "LD_PRELOAD"


def start_again_with(allocator: Allocator | None) -> None:
    """Have memory from `allocator`: the process replaces itself, under its own number. Nothing where it has it already.

    Raises:
        SetupError: this host does not have it.
    """
    preloaded = os.environ.get(_PRELOAD, "")
    if allocator != "tcmalloc" or "libtcmalloc" in preloaded:
        return
    library = allocators.tcmalloc(os.environ)
    if library is None:
        raise SetupError("`engine.allocator = tcmalloc`, and this host does not have it", allocators.INSTALL)
    environ = os.environ | {_PRELOAD: f"{library}:{preloaded}" if preloaded else str(library)}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)
