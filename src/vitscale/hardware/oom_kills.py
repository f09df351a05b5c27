"""How often a host's kernel has ended a process for want of memory, whosever it was."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

COUNTS = Path("/proc/vmstat")


def oom_kills() -> int:
    """Of this host, since it started; 0 where Linux is older than 4.13."""
    with contextlib.suppress(OSError):
        return counted(COUNTS.read_text()) or 0
    return 0


def counted(told: str) -> int | None:
    """Of the host whose `COUNTS` says this; None where it does not tell."""
    match = re.search(r"^oom_kill (\d+)$", told, re.MULTILINE)
    return int(match[1]) if match else None
