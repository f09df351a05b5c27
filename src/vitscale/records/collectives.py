"""`collectives.jsonl`: what the collectives of a launch's steady window carried, and how fast. One line per kind.

A kind is an operation in groups of one size, with calls that differ less than twofold in bytes. Figures are of rank 0,
medians over the window's steps. Bytes and bandwidths are those of NVIDIA's nccl-tests: the size of a collective is the
whole result of an all-gather, the input of a reduce-scatter and an all-to-all, and the tensor of the others.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vitscale.records.schema import Frozen, NotNegative, Positive
from vitscale.records.writer import append_lines

COLLECTIVES = "collectives.jsonl"


class CollectiveRecord(Frozen):
    """Collectives of one kind in one optimizer step."""

    operation: str
    """`all_reduce`, `all_gather`, `reduce_scatter`, `all_to_all`, `broadcast` or `reduce`."""
    group_size: int
    """Ranks that take part."""
    calls_per_step: Positive
    """How often one is started."""
    bytes_per_step: Positive
    """Sizes of all calls together."""
    wire_s_per_step: NotNegative | None = None
    """How long at least one of them is on the wire: from the arrival of its last rank to its end on this one. Null
    where the ranks could not tell each other when they arrived."""
    algbw_bytes_per_s: NotNegative | None = None
    """Algorithm bandwidth, `bytes_per_step / wire_s_per_step`; null also where no time was seen."""
    busbw_bytes_per_s: NotNegative | None = None
    """Bus bandwidth: the former times the operation's factor for the group's size, 2(N-1)/N for an all-reduce. It can
    be compared with what the link can do."""


def write_collectives(folder: Path, records: Iterable[CollectiveRecord]) -> None:
    """Write the lines of a launch, on disk when this returns; no file where there are none."""
    lines = [one.model_dump(mode="json") for one in records]
    if lines:
        append_lines(folder / COLLECTIVES, lines)
