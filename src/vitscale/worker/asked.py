"""Signals that a rank sends itself, since its starter does not pass them on: what the tool writes into a file."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path


def obey(path: Path, every_s: float) -> None:
    """From now on send this process what is asked for in a file, and look every so many seconds."""
    threading.Thread(target=_look, args=(path, every_s), name="asked", daemon=True).start()


def _look(path: Path, every_s: float) -> None:
    done = 0
    while True:
        for number in _signals(path)[done:]:
            os.kill(os.getpid(), number)
            done += 1
        time.sleep(every_s)


def _signals(path: Path) -> list[signal.Signals]:
    try:
        return [signal.Signals[name] for name in path.read_text().splitlines()]
    except (OSError, KeyError):  # not there yet, or half of a name
        return []
