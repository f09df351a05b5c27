"""A round as `python -m vitscale.worker` serves it, for ranks that are forked (`forking.py`)."""

from pathlib import Path

# isort: off
from vitscale.worker import examine, meeting, train  # noqa: F401 (what a worker imports)
import deepspeed  # noqa: F401 (behind timm, which they import)

# isort: on
from vitscale.records.round import Round
from vitscale.worker.__main__ import main as serve


def main(path):
    """Serve a round, in the results folder that this process works in. None with an allocator: it would fork again."""
    assert Round.read(Path(path)).allocator is None
    serve(Path(path))
