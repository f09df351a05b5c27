"""ZeRO-Offload in DeepSpeed's JSON: what of a rank's state leaves the device, and where to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from vitscale.config.keys import get_path
from vitscale.errors import UsageError

DEVICES = ("none", "cpu", "nvme")
_TABLES = ("offload_optimizer", "offload_param")
_DEPRECATED = {
    "cpu_offload": "offload_optimizer.device",
    "cpu_offload_param": "offload_param.device",
    "cpu_offload_use_pin_memory": "offload_optimizer.pin_memory",
}


class Offload(NamedTuple):
    """Where parts of a rank's state are kept; None is on the device."""

    optimizer: str | None = None
    """`cpu` or `nvme`: moments and master weights, which are updated there, and the gradients for it."""
    parameters: str | None = None
    """`cpu` or `nvme`: ZeRO-3's shards of the weights."""


def asked(deepspeed: Mapping[str, Any]) -> Offload:
    """What a checked document asks for."""
    found = (get_path(dict(deepspeed), f"zero_optimization.{table}.device") for table in _TABLES)
    return Offload(*(None if device in (None, "none") else str(device) for device in found))


def check(document: Mapping[str, Any], where: str) -> None:
    """Refuse old spellings, and devices that DeepSpeed does not know.

    Raises:
        UsageError: with the key to write.
    """
    for old, new in _DEPRECATED.items():
        if get_path(dict(document), f"zero_optimization.{old}"):
            raise UsageError(
                f"DeepSpeed key `zero_optimization.{old}` in {where} is deprecated", f"zero_optimization.{new}"
            )
    for table in _TABLES:
        path = f"zero_optimization.{table}.device"
        device = get_path(dict(document), path)
        if device not in (None, *DEVICES):
            raise UsageError(f"DeepSpeed key `{path}` in {where} is {device!r}, not one of {', '.join(DEVICES)}")


def without_none(deepspeed: Mapping[str, Any]) -> dict[str, Any]:
    """The document without tables that offload nothing: they make no other run of the same one."""
    zero = deepspeed.get("zero_optimization")
    if not isinstance(zero, dict):
        return dict(deepspeed)
    idle = [table for table, device in zip(_TABLES, asked(deepspeed), strict=True) if device is None]
    left = {key: value for key, value in zero.items() if key not in idle}
    rest = {key: value for key, value in deepspeed.items() if key != "zero_optimization"}
    return {**rest, "zero_optimization": left} if left else rest
