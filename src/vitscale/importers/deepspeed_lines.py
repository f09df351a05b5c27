"""The lines of a DeepSpeed log that tell something, however they are broken.

DeepSpeed prints with `wall_clock_breakdown`, in its logger's form, as plain text, or through a launcher's prefix:

    [2024-12-01 21:23:31,086] [INFO] [logging.py:128:log_dist] [Rank 0] time (ms) | fwd_microstep: 697.02 | …
    [2021-10-08 20:03:15,649] [INFO] [logging.py:68:log_dist] [Rank 0] rank=0 time (ms) | forward_microstep: 435.69 | …
    worker-0: time (ms) | forward: 193.65 | backward: 329.25 | …

Ranks write into one file without a lock, so that one line may hold several records, or a record end in mid-number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

TIMERS = "time (ms)"
FIRST_LINE = "DeepSpeed info: version="

_RECORD = re.compile(r"time \(ms\)([^\[\n]*)")
_STAMP = re.compile(r"\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[,.]\d{3})\]")
_RANK = re.compile(r"\[Rank (-?\d{1,7})\]|\brank=(\d{1,7})\b")
# Two decimals are always printed: a number with fewer was cut off.
_PART = re.compile(r"\| (\w+): (\d{1,12}\.\d\d)(?!\d)")
_CUT = re.compile(r"\s*\|\s*\w*(?::\s*[\d.]*)?\s*")
_NAMES = {
    "fwd": "forward", "forward": "forward",
    "bwd": "backward", "backward": "backward",
    "bwd_inner": "inner", "backward_inner": "inner",
    "bwd_allreduce": "allreduce", "backward_allreduce": "allreduce",
    "step": "step",
}  # fmt: skip
_MICRO = "_microstep"
_NEEDED = {"forward", "backward", "step"}

_SETTING = re.compile(
    r"\b(train_batch_size|train_micro_batch_size_per_gpu|gradient_accumulation_steps|world_size|"
    r"zero_optimization_stage|zero_enabled|zero_config|optimizer_name|(?:b?float16|fp16|bf16)_(?:enabled|config))"
    r"(?:\(\))?[ .:=]+(?:enabled=|stage=)?(\w+)"
)
SETTINGS = ("print]   ", "Config mesh_device", "train_micro_batch_size_per_gpu", "... ", " .. ")
"""A line without any of these has no setting: most are told by this alone."""

_VERSION = re.compile(r"DeepSpeed info: version=([\w.+-]{1,40})")
_MEMORY = re.compile(r"MaxMemAllocated=(\d{1,6}(?:\.\d+)?)GB")


class Timing(NamedTuple):
    """One record of timers, in seconds."""

    rank: int
    stamp_s: float | None
    """When it was printed, by the log's own clock; None where the line does not say."""
    micro: bool
    """Of one micro-step; else of a whole step."""
    forward_s: float
    backward_s: float
    """With the all-reduce, where it was not timed apart; else without."""
    allreduce_s: float | None
    """The all-reduce and waiting for the slowest rank in it."""
    step_s: float
    """The update, which DeepSpeed calls `step`."""


def timings(line: str) -> Iterator[Timing | None]:
    """The records in a line; None for one that is cut off, or that holds other timers only (no field of a step)."""
    before = 0
    for match in _RECORD.finditer(line):
        yield _timing(line[before : match.start()], match[1])
        before = match.end()


def other_timers(line: str) -> bool:
    """Whether the timers of a line are other ones (of an optimizer, of a pipeline), so that nothing is damaged."""
    names = {name.removesuffix(_MICRO) for name in re.findall(r"\| (\w+): ", line)}
    return bool(names) and not names & _NAMES.keys()


def settings(line: str) -> Iterator[tuple[str, str]]:
    """Names and values of a configuration line."""
    yield from _SETTING.findall(line)


def version(line: str) -> str | None:
    """DeepSpeed's version, of its first line."""
    found = _VERSION.search(line)
    return found[1] if found else None


def memory_bytes(line: str) -> int | None:
    """Largest memory that torch had allocated so far; printed in units of 2**30 bytes."""
    found = _MEMORY.search(line)
    return round(float(found[1]) * 2**30) if found else None


def _timing(before: str, fields: str) -> Timing | None:
    matches = list(_PART.finditer(fields))
    parts = [(match[1], match[2]) for match in matches]
    micro = bool(parts) and parts[0][0].endswith(_MICRO)
    values = {
        _NAMES[name.removesuffix(_MICRO)]: float(value) / 1000
        for name, value in parts
        if name.endswith(_MICRO) == micro and name.removesuffix(_MICRO) in _NAMES
    }
    # What stands after the last whole field may have been a field before it was cut off.
    if matches and _CUT.fullmatch(fields, matches[-1].end()):
        return None
    if not values.keys() >= _NEEDED:
        return None
    allreduce, inner = values.get("allreduce"), values.get("inner")
    backward = values["backward"]
    if allreduce is not None:
        backward = inner if inner is not None else max(0.0, backward - allreduce)
    return Timing(_rank(before), _stamp_s(before), micro, values["forward"], backward, allreduce, values["step"])


def _rank(before: str) -> int:
    """The last one named before the timers: earlier ones belong to other records of the line. None named is rank 0."""
    found = [max(0, int(one or other)) for one, other in _RANK.findall(before)]
    return found[-1] if found else 0


def _stamp_s(before: str) -> float | None:
    found = _STAMP.findall(before)
    if not found:
        return None
    try:
        # The clock's zone is not told; only differences are used.
        return datetime.fromisoformat(f"{found[-1].replace(',', '.')}+00:00").timestamp()
    except ValueError:
        return None
