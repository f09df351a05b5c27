"""Trackers by name: found by entry points, refused before anything starts if their library is not there."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from vitscale.errors import SetupError, UsageError
from vitscale.trackers.protocol import Tracker

GROUP = "vitscale.trackers"


def open_trackers(names: Sequence[str], folder: Path) -> list[Tracker]:
    """The trackers of a results folder; each writes below `folder/trackers/<name>` once a launch is followed.

    Raises:
        UsageError: there is no tracker of that name.
        SetupError: its library is not installed; the hint is the command that installs it.
    """
    known = {point.name: point for point in entry_points(group=GROUP)}
    for name in names:
        if name not in known:
            raise UsageError(f"`train.trackers`: there is no tracker `{name}`", _hint(name, sorted(known)))
    kinds: list[type[Tracker]] = [known[name].load() for name in dict.fromkeys(names)]
    for kind in kinds:
        _require(kind)
    return [kind(folder / "trackers" / kind.name) for kind in kinds]


def _require(kind: type[Tracker]) -> None:
    missing = [name for name in kind.needs if find_spec(name) is None]
    if missing:
        raise SetupError(
            f"the tracker `{kind.name}` needs {', '.join(f'`{name}`' for name in missing)}, not installed here",
            f"pip install '{kind.extra}'",
        )


def _hint(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean `{close[0]}`?" if close else f"one of {', '.join(known)}"
