"""What ranks talk through: the axis `backend`, and which of torch's backends a run can have."""

from __future__ import annotations

import mmap
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from vitscale.config.study import Backend
from vitscale.errors import Infeasible

OF_DEVICE: dict[str, Backend] = {"cpu": "gloo", "cuda": "nccl"}
"""What a device has where nothing is asked for."""
_CLASSES: dict[Backend, bytes] = {"gloo": b"ProcessGroupGloo", "nccl": b"ProcessGroupNCCL", "mpi": b"ProcessGroupMPI"}


def resolve(asked: Backend | Literal["auto"], device: Literal["cpu", "cuda"], *, here: bool) -> Backend | None:
    """The backend of a run, or None where it is the device's own.

    Args:
        asked: the axis.
        device: of the run.
        here: whether the run is for this machine, so that the installed torch has to have it.

    Raises:
        Infeasible: with the rule.
    """
    own = OF_DEVICE[device]
    if asked == "nccl" and own != "nccl":
        raise Infeasible("`backend = nccl` sends from GPUs, and `device = cpu`", "backend=gloo")
    if asked == "gloo" and own != "gloo":
        raise Infeasible(
            "`backend = gloo` has no all_gather of GPU tensors (torch's table of backends), by which ranks tell one "
            "another their figures, whatever the engine sends",
            "backend=nccl",
        )
    if asked != "mpi":
        return None
    if here and not _built_with("mpi"):
        raise Infeasible(
            "`backend = mpi`: the installed torch is built without it, as the wheels are",
            f"torch built from source beside an MPI, or backend={own}",
        )
    return "mpi"


def _built_with(backend: Backend) -> bool:
    """Whether torch's Python library names the backend's class. Nothing is imported: that would take seconds."""
    package = find_spec("torch")
    if package is None or package.origin is None:
        return True  # the plan of another machine; here nothing is started without torch
    library = Path(package.origin).parent / "lib" / "libtorch_python.so"
    if not library.is_file():
        return True
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return text.find(_CLASSES[backend]) >= 0
