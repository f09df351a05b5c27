"""tcmalloc, which a process can be started with in place of its C library's allocator."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path

_FILES = ("libtcmalloc_minimal.so.4", "libtcmalloc.so.4")
"""Of gperftools. The second also holds its profilers, which nothing here starts."""
_FOLDERS = ("usr/local/lib", "usr/lib64", f"usr/lib/{platform.machine()}-linux-gnu", "usr/lib")
INSTALL = "apt install libtcmalloc-minimal4, dnf install gperftools-libs, or conda install gperftools"


def tcmalloc(environ: Mapping[str, str], root: Path = Path("/")) -> Path | None:
    """Where tcmalloc lies: in the loader's own folders, the environment's, then the system's; None where it does not.

    Args:
        environ: read for LD_LIBRARY_PATH and CONDA_PREFIX.
        root: where the system's folders lie; tests give their own.
    """
    own = [Path(one) for one in environ.get("LD_LIBRARY_PATH", "").split(":") if one]
    own += [Path(environ["CONDA_PREFIX"], "lib")] if environ.get("CONDA_PREFIX") else []
    folders = (*own, *(root / one for one in _FOLDERS))
    return next((folder / name for folder in folders for name in _FILES if (folder / name).is_file()), None)
