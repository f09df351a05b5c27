"""What a rank says when it is asked where it stands, by SIGQUIT: its stacks, and how many collectives it has begun.

Of ranks that stand still in one step, the others wait for the one that has begun the fewest. Their own threads may
stand in a library: the stacks are written by the signal's C handler, the number by a thread that it wakes.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading


class Begun:
    """Collectives that this process has begun in its steps."""

    count = 0


BEGUN = Begun()


def answer(rank: int) -> None:
    """From now on say on standard error where this rank stands. Call it from the main thread."""
    asked, woken = os.pipe()
    os.set_blocking(woken, False)
    faulthandler.unregister(signal.SIGQUIT)
    signal.signal(signal.SIGQUIT, lambda *_: None)  # with a handler of Python's, the pipe is written to
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    faulthandler.register(signal.SIGQUIT, all_threads=True, chain=True)
    threading.Thread(target=_say, args=(rank, asked), name="hang", daemon=True).start()


def _say(rank: int, asked: int) -> None:
    while told := os.read(asked, 1):
        if told[0] == signal.SIGQUIT:
            os.write(sys.stderr.fileno(), f"rank {rank} has begun {BEGUN.count} collectives\n".encode())
