"""`collectives.jsonl`: what the ranks told each other in the steady window, a line per operation and group size.

Sizes and bandwidths are nccl-tests': `bytes` is the whole gradient of an all-reduce, the result of an all-gather, the
input of a reduce-scatter; the bus bandwidth is what crosses a rank's link.
"""

from __future__ import annotations

from vitscale.records.schema import Frozen, NotNegative

COLLECTIVES = "collectives.jsonl"


class CollectiveRecord(Frozen):
    """All collectives of one operation in groups of one size, per optimizer step, as rank 0 saw them."""

    operation: str
    """`all_reduce`, `all_gather`, `reduce_scatter`, `all_to_all` or `broadcast`."""
    group_size: int
    """Ranks in the group."""
    calls_per_step: NotNegative
    """Calls."""
    bytes_per_step: NotNegative
    """Sizes of all calls together."""
    wire_s_per_step: NotNegative | None = None
    """From the last rank's arrival to the end, of all calls together; median over the steps."""
    algbw_bytes_per_s: NotNegative | None = None
    """Algorithm bandwidth: bytes over time."""
    busbw_bytes_per_s: NotNegative | None = None
    """Bus bandwidth: algorithm bandwidth times the operation's factor for the group's size."""
