"""`vitscale` with the launcher `lab`, its links shaped to a rate that neither the study nor any record names.

python -m benchmarks.slow_link RATE run STUDY ... --launcher lab
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from vitscale.cli import main
from vitscale.launch import lab

RATE = sys.argv.pop(1)
_network = lab.network


@contextmanager
def _slow(hosts: int, rate: str | None) -> Iterator[list[str]]:
    assert rate is None, "the study names a link of its own"
    with _network(hosts, RATE) as names:
        yield names


lab.network = _slow
main()
