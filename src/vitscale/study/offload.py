"""Rules of ZeRO-Offload: which stage and device it needs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from ctypes.util import find_library
from pathlib import Path
from typing import Any

from vitscale.config import offload
from vitscale.config.keys import get_path
from vitscale.errors import Infeasible
from vitscale.study.engines import OF_DEEPSPEED
from vitscale.study.points import Point

_KEY = "deepspeed.zero_optimization"
_HEADERS = (Path("/usr/include/libaio.h"), Path("/usr/local/include/libaio.h"))


def require_offload(deepspeed: Mapping[str, Any], point: Point, *, here: bool) -> None:
    """Refuse what DeepSpeed does not offload; another engine has nothing to refuse.

    Args:
        deepspeed: the study's keys.
        point: the combination.
        here: whether the run is for this machine.

    Raises:
        Infeasible: with the rule.
    """
    asked = offload.asked(deepspeed)
    if point.engine not in OF_DEEPSPEED:
        return
    for table, device, smallest in (("offload_optimizer", asked.optimizer, 1), ("offload_param", asked.parameters, 3)):
        if device is None:
            continue
        key, way_out = f"`{_KEY}.{table}.device = {device}`", "leave it out"
        if point.device == "cpu":
            raise Infeasible(f"{key}: with `device = cpu` the state lies in the host's memory already", way_out)
        least = 3 if device == "nvme" else smallest
        if point.zero_stage < least:
            raise Infeasible(f"{key} needs ZeRO-{least}, and `zero_stage = {point.zero_stage}`", way_out)
        if device == "nvme":
            path = f"{_KEY}.{table}.nvme_path"
            if not get_path({"deepspeed": dict(deepspeed)}, path):
                raise Infeasible(f"{key} needs `{path}`: a folder on the NVMe device", f"{path}=/local_nvme")
            if here:
                _require_built(key)


def _require_built(key: str) -> None:
    """Look for what DeepSpeed builds and loads its asynchronous I/O with."""
    if find_library("aio") is None or not any(folder.exists() for folder in _HEADERS):
        raise Infeasible(f"{key} needs libaio and its header, which are not found here", "apt-get install libaio-dev")
    if not any(shutil.which(name) for name in ("g++", "c++")) or shutil.which("ninja") is None:
        raise Infeasible(f"{key} is built by g++ and ninja, which are not both found here", "pip install ninja; g++")
