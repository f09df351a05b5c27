"""Devices as data: peaks, memory, links, each with its source; `catalog.toml` holds the figures.

A name that is not there has no figures: no device stands in for another.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

from vitscale.errors import UsageError

CPU = "cpu"
"""What a CPU is called where it is simulated: it has no data sheet, but a calibration may be of one."""


@dataclass(frozen=True)
class LinkSpec:
    """A connection in one direction: of one device inside a node, or of a whole node to the others."""

    name: str
    bytes_per_s: float
    latency_s: float | None
    source: str
    """Where the figure is from, or `assumed: …` with the reason."""
    switched: bool = False
    """Whether any two devices have all of it between them, over a switch."""

    @property
    def assumed(self) -> bool:
        """Whether nothing tells the figure."""
        return self.source.startswith("assumed")


@dataclass(frozen=True)
class NodeLinks:
    """What connects the ranks of a layout: one rank's link inside a node, and the network of one node."""

    intra_node: LinkSpec | None
    inter_node: LinkSpec | None


@dataclass(frozen=True)
class DeviceSpec:
    """One accelerator as its maker states it: dense peaks, never the sparse ones."""

    name: str
    title: str
    peak_flop_per_s: Mapping[str, float]
    """By precision: fp32, tf32, bf16, fp16; absent where the device has none or the sheet does not say."""
    memory_bytes: int
    memory_bytes_per_s: float
    board_power_w: float
    """Most that the board may take: an upper bound."""
    devices_per_node: int | None
    """In the maker's usual server, or None where there is none."""
    intra_node: LinkSpec | None
    inter_node: LinkSpec | None
    nvml_names: tuple[str, ...]
    source: str
    date: str
    note: str | None = None

    def peak(self, precision: str) -> float | None:
        """Return the dense peak for a training precision in FLOP/s, or None if it is not known."""
        return self.peak_flop_per_s.get(precision)

    def links(self, ranks_per_node: int) -> NodeLinks:
        """Return the links of a layout. Assumed: a rank reaches the network through its device's share of the cards."""
        network = self.inter_node
        if network is not None and self.devices_per_node:
            share = min(1.0, ranks_per_node / self.devices_per_node)
            network = replace(network, bytes_per_s=network.bytes_per_s * share)
        return NodeLinks(self.intra_node, network)


def names() -> tuple[str, ...]:
    """Return the short names of the devices in the catalog."""
    return tuple(_catalog())


def device(name: str) -> DeviceSpec:
    """Return a device by its short name.

    Raises:
        UsageError: the name is not in the catalog.
    """
    catalog = _catalog()
    found = catalog.get(name.lower())
    if found is not None:
        return found
    close = difflib.get_close_matches(name.lower(), catalog, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(f'`{other}`' for other in close)}?" if close else f"known: {', '.join(catalog)}"
    raise UsageError(f"no device of the catalog is called `{name}`", hint)


def title(name: str) -> str:
    """Return the full name of a device that is simulated.

    Raises:
        UsageError: the name is neither in the catalog nor `cpu`.
    """
    return "CPU of the calibration" if name == CPU else device(name).title


def match(nvml_name: str) -> DeviceSpec | None:
    """Return the device that NVML (or torch) reports under exactly this name, or None."""
    return next((spec for spec in _catalog().values() if nvml_name in spec.nvml_names), None)


def spelled(name: str) -> tuple[DeviceSpec, ...]:
    """Return the devices that a name may mean, however it is written, the one with the least memory first.

    `RTX 3090`, `A100-SXM4-80GB`, `h100_80gb`, `NVIDIA T4`, `DGX A100 40GB`: the board, with its memory and form where
    they are told. Anything else in the name (`A10G`, `RTX 3090 Ti`, `H100 NVL`) is another device: none.
    """
    words = _SPELLING.fullmatch(" ".join(_WORD.findall(name.lower())))
    if words is None:
        return ()
    told_bytes = int(words["memory"]) * 10**9 if words["memory"] else None
    found = [
        spec
        for key, spec in _catalog().items()
        if key.split("-")[0] == words["board"].replace(" ", "")
        and (spec.memory_bytes == told_bytes or told_bytes is None)
        and (words["form"] != "pcie" or spec.devices_per_node is None)
        and (words["form"] == "pcie" or not key.endswith("-pcie"))
    ]
    return tuple(sorted(found, key=lambda spec: spec.memory_bytes))


_WORD = re.compile(r"[a-z0-9]+")
_SPELLING = re.compile(
    r"(?:(?:nvidia|amd|tesla|geforce|instinct|dgx|hgx) )*(?P<board>rtx ?\d{4}|mi\d{3}x|[abhltv]\d{1,3}s?)"
    r"(?: (?P<form>pcie|sxm\d?))?(?: (?P<memory>\d{2,3}) ?gb?)?(?: hbm\d?e?)?"
)


@cache
def _catalog() -> dict[str, DeviceSpec]:
    text = files("vitscale.hardware").joinpath("catalog.toml").read_text(encoding="utf-8")
    table = tomllib.loads(text)
    links = {name: _link(values) for name, values in table["links"].items()}
    return {name: _device(name, values, links) for name, values in table["devices"].items()}


def _link(values: Mapping[str, Any]) -> LinkSpec:
    switched = values.get("switched", False)
    return LinkSpec(values["name"], values["bytes_per_s"], values.get("latency_s"), values["source"], switched)


def _device(name: str, values: Mapping[str, Any], links: Mapping[str, LinkSpec]) -> DeviceSpec:
    return DeviceSpec(
        name=name,
        title=values["title"],
        peak_flop_per_s=values["peak_flop_per_s"],
        memory_bytes=values["memory_bytes"],
        memory_bytes_per_s=values["memory_bytes_per_s"],
        board_power_w=values["board_power_w"],
        devices_per_node=values.get("devices_per_node"),
        intra_node=links[values["intra_node"]] if "intra_node" in values else None,
        inter_node=links[values["inter_node"]] if "inter_node" in values else None,
        nvml_names=tuple(values.get("nvml_names", ())),
        source=values["source"],
        date=values["date"],
        note=values.get("note"),
    )
