"""Sizes in DeepSpeed's JSON that are counted in elements: a bucket of nothing never fills."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitscale.config.keys import get_path, shown
from vitscale.errors import UsageError

_BUCKETS = ("reduce_bucket_size", "allgather_bucket_size")
_LIMITS = (
    "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold",
    "stage3_max_reuse_distance",
    "stage3_max_live_parameters",
)
"""Here 0 has a meaning: nothing is prefetched, persists, is reused or stays."""


def check(document: Mapping[str, Any], where: str) -> None:
    """Refuse sizes that are no whole number, and buckets of nothing. `5e8` is one, as JSON's users write it.

    Raises:
        UsageError: with the key and its value.
    """
    for name in (*_BUCKETS, *_LIMITS):
        path, least = f"zero_optimization.{name}", int(name in _BUCKETS)
        size = get_path(dict(document), path)
        if size is None:
            continue
        if isinstance(size, bool) or not isinstance(size, int | float) or size != int(size) or size < least:
            wanted = f"a whole number, {least} or more"
            raise UsageError(f"DeepSpeed key `{path}` in {where} is {shown(str(size))}, not {wanted}")
