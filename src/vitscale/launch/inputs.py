"""What a study gives to whoever starts its ranks, the same for every launcher."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vitscale.config.study import LaunchSection

_KEPT = {
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "TMPDIR", "XDG_CACHE_HOME", "LD_LIBRARY_PATH",
    "LD_PRELOAD", "GLIBC_TUNABLES", "VIRTUAL_ENV", "CONDA_PREFIX", "CC", "CXX", "CPATH", "LIBRARY_PATH", "MAX_JOBS",
}  # fmt: skip
_KEPT_BEGINNINGS = (
    "PYTHON", "CUDA_", "CUBLAS_", "CUDNN_", "NVIDIA_", "NCCL_", "OFI_NCCL_", "RDMAV_", "IBV_", "TORCH_", "PYTORCH_",
    "TORCHINDUCTOR_", "TRITON_", "DS_", "GLOO_", "OMP_", "GOMP_", "KMP_", "MKL_", "ATEN_", "DNNL_", "ONEDNN_", "UCX_",
    "FI_", "I_MPI_", "MPIR_CVAR_", "OPENBLAS_", "MALLOC_", "VITSCALE_",
)  # fmt: skip
"""What ranks need of the environment. Keys of trackers and hubs are not among it."""
_SECRET_ENDINGS = ("_KEY", "_TOKEN", "_SECRET", "_PASSWORD", "_JWT")
"""Not even where the beginning is allowed: SLURM_JWT, NVIDIA_API_KEY."""
OF_ONE_HOST = {"HOME", "USER", "LOGNAME", "TMPDIR", "XDG_CACHE_HOME"}
"""Variables that each host has its own value of."""


@dataclass(frozen=True)
class Inputs:
    """What launchers share."""

    data_root: Path
    """Folder of the prepared data sets, the same path on every host."""
    data_path: Path | None = None
    """The image folder that `imagefolder` was prepared from."""
    limits: LaunchSection = field(default_factory=LaunchSection)
    """The study's `[launch]`."""
    init: Path | None = None
    """File of the weights that training starts from."""
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    """What the environment of the ranks is taken from."""

    def variables(self) -> dict[str, str]:
        """Environment of every rank."""
        own = {"HF_HUB_OFFLINE": "1", "VITSCALE_DATA": str(self.data_root.resolve())}
        own |= {"VITSCALE_DATA_PATH": str(self.data_path.resolve())} if self.data_path else {}
        return own | ({"VITSCALE_INIT": str(self.init.resolve())} if self.init else {})


def allowed(environ: Mapping[str, str], beginnings: tuple[str, ...] = ()) -> dict[str, str]:
    """The part of an environment that ranks get, and what begins with these words: their starter reads it."""
    wanted = (*_KEPT_BEGINNINGS, *beginnings)
    kept = (name for name in environ if name in _KEPT or name.startswith(wanted))
    return {name: environ[name] for name in kept if not name.endswith(_SECRET_ENDINGS)}
